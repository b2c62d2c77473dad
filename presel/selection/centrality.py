"""Neighbor centrality: the mean cosine similarity of an image to its nearest neighbors (eq. 7)."""

import numpy as np
import numpy.typing as npt

from presel.selection.arrays import FloatMatrix, FloatVector, check_whole
from presel.selection.feature_rows import FeatureRows

# A tile of similarities takes 16 MB in float64.
_TILE_ROWS = 512
_TILE_COLUMNS = 4096


def neighbor_centrality(features: "npt.ArrayLike | FeatureRows", k: int = 5) -> FloatVector:
    """Computes each vector's mean cosine similarity to its k nearest neighbors (eq. 7).

    Computed in float64, so that equal images differ by less than what `select_from_task` treats as a tie, and
    in tiles, so that memory is bounded.

    Args:
        features: Vectors of one cluster, or of a whole task, shape (n, d), of any norm.
        k: Number of neighbors, at least 1; min(k, n - 1) are used, as in the released code.

    Returns:
        Scores from -1 to 1, shape (n,). A single vector has no neighbor; its score, undefined in the released
        code, is 1.0, since no other image represents that cluster.

    Raises:
        ValueError: If `k` is below 1, the shape is not (n, d), or a vector has a NaN or is zero.
    """
    check_whole(k, "k")
    return centrality_of(FeatureRows.of(features), int(k))


def centrality_of(rows: FeatureRows, k: int) -> FloatVector:
    """`neighbor_centrality` of checked vectors."""
    n = len(rows)
    if n == 1:
        return np.ones(1)
    k = min(k, n - 1)
    scores = np.empty(n)
    for start in range(0, n, _TILE_ROWS):
        stop = min(start + _TILE_ROWS, n)
        own = _unit(rows, start, stop)  # (r, d)
        best = np.empty((len(own), 0))  # (r, up to k)
        for first in range(0, n, _TILE_COLUMNS):
            last = min(first + _TILE_COLUMNS, n)
            # A cluster that fits into one tile is read once; BLAS computes X @ X.T in half the time.
            similarity = own @ (own if len(own) == n else _unit(rows, first, last)).T  # (r, c)
            itself = np.arange(max(start, first), min(stop, last))
            similarity[itself - start, itself - first] = -np.inf
            best = _largest(np.hstack([best, similarity]) if best.shape[1] else similarity, k)
        scores[start:stop] = best.mean(axis=1)
    return np.clip(scores, -1, 1)


def _unit(rows: FeatureRows, start: int, stop: int) -> FloatMatrix:
    """Rows scaled to norm 1, (stop - start, d)."""
    vectors = rows.block(start, stop).astype(np.float64)
    vectors *= 1 / np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return vectors


def _largest(values: FloatMatrix, k: int) -> FloatMatrix:
    """The k largest values of each row, (r, c) -> (r, k)."""
    return values if values.shape[1] <= k else np.partition(values, -k, axis=1)[:, -k:]
