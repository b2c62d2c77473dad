"""Nearest centroids by scikit-learn's chunked pairwise reduction."""

import numpy as np
import numpy.typing as npt
from sklearn.metrics import pairwise_distances_argmin_min

from presel.selection.kmeans.search import Searcher


def searcher(centroids: npt.NDArray[np.float32]) -> Searcher:
    """See `presel.selection.kmeans.search.Backend`."""

    def nearest(rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        labels, distances = pairwise_distances_argmin_min(rows, centroids, metric="sqeuclidean")
        return labels.astype(np.int64), distances.astype(np.float32)

    return nearest
