"""The nearest neighbors of every feature vector, to show which images are alike."""

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from presel.selection.arrays import FloatMatrix
from presel.selection.feature_rows import FeatureRows


def nearest_neighbors(
    features: "npt.ArrayLike | FeatureRows", k: int = 5
) -> tuple[npt.NDArray[np.int64], FloatMatrix]:
    """Finds the vectors of largest cosine similarity to each vector, by comparing all pairs.

    Args:
        features: Vectors, (n, d), of any norm but 0.
        k: Number of neighbors; n - 1 if there are no more.

    Returns:
        Rows of the neighbors, the nearest first, and their cosine distances from 0 to 2; both
        (n, min(k, n - 1)).
    """
    rows = FeatureRows.of(features)
    k = min(k, len(rows) - 1)
    if not k:
        return np.empty((1, 0), np.int64), np.empty((1, 0))
    vectors = rows.take(np.arange(len(rows)))  # (n, d)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    distances, neighbors = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors).kneighbors()
    # Of vectors of norm 1, half the squared distance is the cosine distance.
    return neighbors, np.square(distances, dtype=np.float64) / 2
