"""Array types, and two functions that several modules of the selection and the strategies need."""

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

IntVector: TypeAlias = npt.NDArray[np.int64]
BoolVector: TypeAlias = npt.NDArray[np.bool_]
FloatVector: TypeAlias = npt.NDArray[np.float64]
FloatMatrix: TypeAlias = npt.NDArray[np.float64]
Float32Vector: TypeAlias = npt.NDArray[np.float32]
Float32Matrix: TypeAlias = npt.NDArray[np.float32]


def check_whole(value: float, name: str, least: int = 1) -> None:
    """Checks that a value is a whole number of at least `least`.

    Raises:
        ValueError: If it is not; the message calls the value `name`.
    """
    if isinstance(value, bool) or not (math.isfinite(value) and value == int(value) and value >= least):
        raise ValueError(f"{name} is {value}; it must be a whole number of at least {least}")


def squared_distances(first: FloatMatrix, second: FloatMatrix) -> FloatMatrix:
    """Squared Euclidean distances, (n, d) and (m, d) -> (n, m); float32 would lose small distances."""
    one, other = (np.einsum("ij,ij->i", vectors, vectors) for vectors in (first, second))  # (n,), (m,)
    squares: FloatMatrix = np.maximum(one[:, None] + other - 2 * first @ second.T, 0)  # (n, m)
    return squares
