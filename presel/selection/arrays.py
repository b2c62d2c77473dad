"""Array types, checks of arguments, and distances, for the selection, the importance and the strategies."""

import math
from numbers import Real
from typing import Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

IntVector: TypeAlias = npt.NDArray[np.int64]
BoolVector: TypeAlias = npt.NDArray[np.bool_]
FloatVector: TypeAlias = npt.NDArray[np.float64]
FloatMatrix: TypeAlias = npt.NDArray[np.float64]
Float32Vector: TypeAlias = npt.NDArray[np.float32]
Float32Matrix: TypeAlias = npt.NDArray[np.float32]


def check_choice(value: str, name: str, choices: object) -> None:
    """Raises a ValueError unless a value is one of those of a `Literal`; the message calls it `name`."""
    if value not in get_args(choices):
        raise ValueError(f"{name} '{value}' is unknown; choose one of {', '.join(get_args(choices))}")


def check_all(good: BoolVector, values: npt.NDArray[Any], name: str, rule: str) -> None:
    """Raises a ValueError with the first of `values`, (n,), that is not good, and the rule that it breaks."""
    if not good.all():
        first = int(np.argmin(good))
        raise ValueError(f"{name}[{first}] is {values[first]}; {rule}")


def check_whole(value: float, name: str, least: int = 1) -> None:
    """Raises a ValueError unless a value is a whole number of at least `least`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value == int(value) and value >= least):
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")


def round_for_ties(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scores of any shape, rounded to nine decimals, since those of equal images differ in the last bits."""
    return np.round(scores, 9)


def squared_distances(first: FloatMatrix, second: FloatMatrix) -> FloatMatrix:
    """Squared Euclidean distances, (n, d) and (m, d) -> (n, m); float32 would lose small distances."""
    one, other = (np.einsum("ij,ij->i", vectors, vectors) for vectors in (first, second))  # (n,), (m,)
    squares: FloatMatrix = np.maximum(one[:, None] + other - 2 * first @ second.T, 0)  # (n, m)
    return squares
