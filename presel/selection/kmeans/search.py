"""Nearest-centroid searches: the part of k-means that takes the time, on different libraries.

A backend is a module with one function `searcher(centroids)`, see `Backend`; everything else of k-means is
common to all of them, so that they share one contract.
"""

import importlib
from collections.abc import Callable
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

# (rows, d) -> nearest centroid of each row (rows,), squared distance to it (rows,)
Searcher = Callable[[npt.NDArray[np.float32]], tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]


class Backend(Protocol):
    """What a backend module offers."""

    def searcher(self, centroids: npt.NDArray[np.float32]) -> Searcher:
        """Prepares the search among centroids, shape (C, d)."""


def load(name: str) -> Backend:
    """Imports a backend; the library behind it is imported only now.

    Args:
        name: faiss, torch, sklearn or numpy.

    Raises:
        ValueError: If the library is not installed.
    """
    try:
        return cast(Backend, importlib.import_module(f"{__package__}.search_{name}"))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"k-means backend '{name}' needs the package '{error.name}', which is not installed; install "
            "it or choose backend='numpy', which needs none"
        ) from error


def load_best() -> Backend:
    """Imports faiss where it sees a GPU, else NumPy: on a CPU, faiss's threads and those of BLAS contend."""
    try:
        import faiss
    except ModuleNotFoundError:
        return load("numpy")
    return load("faiss" if getattr(faiss, "get_num_gpus", int)() > 0 else "numpy")
