"""How typical an image is of its neighborhood (eq. 7)."""

import numpy as np
import numpy.typing as npt

from presel.selection.checks import check_whole
from presel.selection.feature_rows import FeatureRows

FloatVector = npt.NDArray[np.float64]

# A tile of similarities takes 16 MB in float64.
_TILE_ROWS = 512
_TILE_COLUMNS = 4096


def neighbor_centrality(features: "npt.ArrayLike | FeatureRows", k: int = 5) -> FloatVector:
    """Computes each vector's mean cosine similarity to its k nearest neighbors (eq. 7).

    In float64, so that equal images differ by less than what `select_from_task` counts as a tie. Memory is
    bounded: similarities are computed in tiles.

    Args:
        features: Vectors of one cluster, or of a whole task, shape (n, d); lengths do not matter.
        k: Neighbors, at least 1. With fewer than k others (k >= n) all others count, as in the released code:
            min(k, n - 1).

    Returns:
        Scores from -1 to 1, shape (n,). A single vector has no neighbor, and its score, undefined in the
        released code, is 1.0: nothing else represents that cluster.

    Raises:
        ValueError: If `k` is below 1, the shape is not (n, d), or a vector has a NaN or is zero.
    """
    check_whole(k, "k")
    return centrality_of(FeatureRows.of(features), int(k))


def centrality_of(rows: FeatureRows, k: int) -> FloatVector:
    """`neighbor_centrality` on vectors that were checked already."""
    n = len(rows)
    if n == 1:
        return np.ones(1)
    k = min(k, n - 1)
    scores = np.empty(n)
    for start in range(0, n, _TILE_ROWS):
        stop = min(start + _TILE_ROWS, n)
        own = _unit(rows, start, stop)
        best = np.empty((len(own), 0))
        for first in range(0, n, _TILE_COLUMNS):
            last = min(first + _TILE_COLUMNS, n)
            # A cluster in one tile is read once, and its product with itself takes half the arithmetic.
            similarity = own @ (own if len(own) == n else _unit(rows, first, last)).T
            itself = np.arange(max(start, first), min(stop, last))
            similarity[itself - start, itself - first] = -np.inf
            best = _largest(np.hstack([best, similarity]) if best.shape[1] else similarity, k)
        scores[start:stop] = best.mean(axis=1)
    return np.clip(scores, -1, 1)


def _unit(rows: FeatureRows, start: int, stop: int) -> npt.NDArray[np.float64]:
    vectors = rows.block(start, stop).astype(np.float64)
    vectors *= 1 / np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return vectors


def _largest(values: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.float64]:
    if values.shape[1] <= k:
        return values
    return np.partition(values, -k, axis=1)[:, -k:]
