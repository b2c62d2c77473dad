"""The nearest neighbors of every feature vector, to show which images are alike."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from presel.selection.arrays import Float32Matrix, IntVector
from presel.selection.feature_rows import FeatureRows
from presel.selection.kmeans.assignment import assign, grouped
from presel.selection.kmeans.search import numpy_search

# The most vectors of which all pairs are compared, which takes minutes.
_ALL_PAIRS = 100_000
# More vectors are divided into cells. Vectors of a cell, on average:
_CELL = 2000
# Cells whose vectors one is compared with: its own and the nearest others.
_NEAR = 16
# Vectors that are compared at a time, to bound memory.
_ROWS = 256


def nearest_neighbors(
    features: npt.ArrayLike | FeatureRows, k: int = 5, on_progress: Callable[[int], None] | None = None
) -> tuple[npt.NDArray[np.int64], Float32Matrix]:
    """Finds the vectors of largest cosine similarity to each vector.

    Up to 100,000 vectors are all compared with each other. Of more, each is compared with those nearby, by
    regions around a random sample, so that some neighbors are not the very nearest.

    Args:
        features: Vectors, (n, d), of any norm but 0; `FeatureRows` must be normalized.
        k: Number of neighbors; n - 1 if there are no more.
        on_progress: Called with the number of vectors finished since the last call.

    Returns:
        Rows of the neighbors, the nearest first, and their cosine distances from 0 to 2; both
        (n, min(k, n - 1)).
    """
    rows = features if isinstance(features, FeatureRows) else FeatureRows(features, normalize=True)
    k = min(k, len(rows) - 1)
    neighbors = np.empty((len(rows), k), np.int64)
    distances = np.empty((len(rows), k), np.float32)
    if not k:
        return neighbors, distances
    for members, others in _cells(rows, k):
        vectors = rows.take(others)  # (c, d)
        places = np.searchsorted(others, members)  # (m,)
        for start in range(0, len(members), _ROWS):
            own = places[start : start + _ROWS]  # (b,)
            found, away = _nearest(vectors, own, k)
            neighbors[others[own]], distances[others[own]] = others[found], away
            if on_progress:
                on_progress(len(own))
    return neighbors, distances


def _cells(rows: FeatureRows, k: int) -> list[tuple[IntVector, IntVector]]:
    """The rows of each cell, (m,), and those that they are compared with, (c,), both ascending."""
    everything = np.arange(len(rows))
    if len(rows) <= _ALL_PAIRS:
        return [(everything, everything)]
    drawn = np.random.default_rng(0).choice(len(rows), len(rows) // _CELL, replace=False)
    centers = np.unique(rows.take(np.sort(drawn)), axis=0)  # (cells, d)
    order, starts = grouped(assign(rows, centers, numpy_search).labels, len(centers))
    cells = [order[start:stop] for start, stop in pairwise(starts)]
    cosines = centers @ centers.T  # (cells, cells)
    np.fill_diagonal(cosines, np.inf)
    # Every cell has its center, so that these hold k others.
    near = np.argsort(-cosines, axis=1)[:, : max(_NEAR, k + 1)]  # (cells, near)
    return [
        (cell, np.sort(np.concatenate([cells[one] for one in nearest])))
        for cell, nearest in zip(cells, near, strict=True)
    ]


def _nearest(vectors: Float32Matrix, own: IntVector, k: int) -> tuple[npt.NDArray[np.int64], Float32Matrix]:
    """The k vectors nearest to some of the normalized `vectors`, (c, d), other than itself.

    Args:
        vectors: All of them.
        own: Rows of those whose neighbors are wanted, (b,).
        k: Number of neighbors.

    Returns:
        Rows of the neighbors and cosine distances, (b, k) each, the nearest first.
    """
    distances = 1 - vectors[own] @ vectors.T  # (b, c)
    distances[np.arange(len(own)), own] = np.inf
    found = np.argpartition(distances, k - 1, axis=1)[:, :k]
    away = np.take_along_axis(distances, found, axis=1)
    order = np.argsort(away, axis=1, kind="stable")
    nearest = np.take_along_axis(found, order, axis=1)
    return nearest, np.maximum(np.take_along_axis(away, order, axis=1), 0)
