"""Distances between vectors."""

import numpy as np
import numpy.typing as npt

FloatMatrix = npt.NDArray[np.float64]


def squared_distances(first: FloatMatrix, second: FloatMatrix) -> FloatMatrix:
    """Squared Euclidean distances, (n, d) and (m, d) -> (n, m); float32 would blur near vectors."""
    one, other = (np.einsum("ij,ij->i", vectors, vectors) for vectors in (first, second))
    squares: FloatMatrix = np.maximum(one[:, None] + other - 2 * first @ second.T, 0)
    return squares
