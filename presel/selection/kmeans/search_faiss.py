"""Nearest centroids by faiss, on all GPUs where its GPU build is installed and sees one."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from presel.selection.kmeans.search import Searcher


def searcher(centroids: npt.NDArray[np.float32]) -> Searcher:
    """See `presel.selection.kmeans.search.Backend`."""
    index: Any = faiss.IndexFlatL2(centroids.shape[1])
    if getattr(faiss, "get_num_gpus", int)() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(np.ascontiguousarray(centroids))

    def nearest(rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        distances, labels = index.search(np.ascontiguousarray(rows), 1)
        return labels[:, 0], distances[:, 0]

    return nearest
