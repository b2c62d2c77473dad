"""Nearest-centroid search, the part of k-means that takes the time: by NumPy, or by faiss on GPUs."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from presel.selection.arrays import Float32Matrix, Float32Vector, IntVector

# Rows (n, d) -> nearest centroid of each row (n,), squared distance to it (n,).
Search = Callable[[Float32Matrix], tuple[IntVector, Float32Vector]]
# Centroids (C, d) -> the search among them.
MakeSearch = Callable[[Float32Matrix], Search]

# Scores computed at a time, 4 MB: their maximum is then taken from the cache.
_SCORES = 2**20


def search_by(backend: Literal["auto", "numpy", "faiss"]) -> MakeSearch:
    """Chooses the library; `auto` is faiss on GPUs only: on CPUs its threads contend with those of BLAS."""
    if backend == "numpy":
        return numpy_search
    try:
        import faiss
    except ModuleNotFoundError as error:
        if backend == "auto":
            return numpy_search
        raise ValueError(
            "k-means backend 'faiss' needs the package 'faiss', which is not installed; install it or choose "
            "backend='numpy', which needs none"
        ) from error
    return faiss_search if backend == "faiss" or _gpus(faiss) else numpy_search


def on_gpus(backend: Literal["auto", "numpy", "faiss"]) -> bool:
    """Whether `search_by` takes this machine's GPUs, whose rounding other machines need not share."""
    if search_by(backend) is numpy_search:
        return False
    import faiss

    return _gpus(faiss) > 0


def numpy_search(centroids: Float32Matrix) -> Search:
    """Searches by one matrix product for each block of rows."""
    transposed = np.ascontiguousarray(centroids.T)  # (d, C)
    half_norms = np.einsum("ij,ij->i", centroids, centroids) / 2  # (C,)
    step = max(256, _SCORES // len(centroids))

    def nearest(rows: Float32Matrix) -> tuple[IntVector, Float32Vector]:
        labels = np.empty(len(rows), dtype=np.int64)
        best = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), step):
            # |x - c|² = |x|² - 2 (x·c - |c|²/2): the nearest centroid has the largest bracket.
            scores = rows[start : start + step] @ transposed  # (step, C)
            scores -= half_norms
            chosen = scores.argmax(axis=1)  # (step,)
            labels[start : start + step] = chosen
            best[start : start + step] = scores[np.arange(len(chosen)), chosen]
        return labels, np.maximum(np.einsum("ij,ij->i", rows, rows) - 2 * best, 0)

    return nearest


def faiss_search(centroids: Float32Matrix) -> Search:
    """Searches by a flat index of faiss, on all GPUs that it sees."""
    import faiss

    index: Any = faiss.IndexFlatL2(centroids.shape[1])
    if _gpus(faiss):
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(np.ascontiguousarray(centroids))

    def nearest(rows: Float32Matrix) -> tuple[IntVector, Float32Vector]:
        distances, labels = index.search(np.ascontiguousarray(rows), 1)  # (n, 1) each
        return labels[:, 0], distances[:, 0]

    return nearest


def _gpus(faiss: Any) -> int:
    """GPUs that faiss sees; its CPU build lacks the function."""
    return int(getattr(faiss, "get_num_gpus", int)())
