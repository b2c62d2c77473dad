"""Chooses images that cover a task, so that every image of it resembles a chosen one."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from presel.selection.arrays import (
    BoolVector,
    FloatMatrix,
    FloatVector,
    IntVector,
    check_whole,
    round_for_ties,
)
from presel.selection.clustering import cluster
from presel.selection.feature_rows import FeatureRows

# A tile of similarities takes at most 4 MB in float64.
_TILE_ROWS = 1024
_TILE_COLUMNS = 512
# How many gains are computed anew together at first; twice as many each time that these do not decide.
_FIRST_BATCH = 16


def facility_location(
    features: "npt.ArrayLike | FeatureRows", available: BoolVector, bought: BoolVector, budget: int
) -> IntVector:
    """Greedily maximizes the facility location function (Wei, Iyer and Bilmes, ICML 2015).

    f(S) is the mean over all images i of max(0, max over j in S of cos(i, j)): how well the images S
    represent the task. Each step adds the available image that raises f most. The result raises f by at least
    1 - 1/e of what the best choice of as many images would (Nemhauser et al., 1978). Since gains only fall as
    S grows, outdated ones are upper bounds, and only the largest are computed anew (Minoux, 1978); the result
    is that of the plain greedy algorithm.

    Args:
        features: All images of the task, shape (n, d), of any norm.
        available: Which images can be chosen, shape (n,).
        bought: Which images are in S from the start, shape (n,), none of them available.
        budget: Number of images to choose; all available ones if there are fewer.

    Returns:
        Row numbers in the order of choosing. Gains are compared rounded to nine decimals; of equal ones the
        first row is chosen. Takes 4 · n · d bytes of memory, and time proportional to n² · d.

    Raises:
        ValueError: If a mask is not bool of shape (n,), an image is both available and bought, the budget is
            not a whole number of at least 0, or a feature vector is refused.
    """
    rows = FeatureRows.of(features)
    _check_mask(available, "available", len(rows))
    _check_mask(bought, "bought", len(rows))
    if (available & bought).any():
        raise ValueError(f"row {int(np.argmax(available & bought))} is both available and bought")
    check_whole(budget, "the budget", least=0)
    coverage = _Coverage(rows)
    coverage.add(np.flatnonzero(bought))
    free = np.flatnonzero(available)  # (m,)
    gains = coverage.gains(free)  # (m,), upper bounds once outdated
    computed_at = np.zeros(len(free), dtype=np.int64)  # (m,), images that were chosen at that time
    chosen = np.empty(min(int(budget), len(free)), dtype=np.int64)
    for place in range(len(chosen)):
        batch = _FIRST_BATCH
        while computed_at[best := int(gains.argmax())] != place:
            outdated = np.flatnonzero((computed_at != place) & (gains >= 0))
            largest = outdated[np.argsort(-gains[outdated], kind="stable")[:batch]]
            gains[largest] = coverage.gains(free[largest])
            computed_at[largest] = place
            batch *= 2
        chosen[place] = free[best]
        gains[best] = -1
        coverage.add(chosen[place : place + 1])
    return chosen


def nearest_to_centers(
    features: "npt.ArrayLike | FeatureRows", available: BoolVector, budget: int, seed: int = 0
) -> IntVector:
    """Clusters the available images into as many clusters as the budget, and takes the most central of each.

    Args:
        features: All images of the task, shape (n, d), L2-normalized.
        available: Which images can be chosen, shape (n,).
        budget: Number of images to choose; all available ones if there are fewer.
        seed: Seed of k-means (`presel.selection.cluster`).

    Returns:
        Row numbers: of each cluster the image nearest to its center, larger clusters first. Squared distances
        are compared rounded to six decimals, since both images of a cluster of two are equally near to its
        center, which is in float32; of equal ones the first row is taken.

    Raises:
        ValueError: If the mask is not bool of shape (n,), the budget is not a whole number of at least 0, or
            a feature vector is refused.
    """
    rows = FeatureRows.of(features)
    _check_mask(available, "available", len(rows))
    check_whole(budget, "the budget", least=0)
    free = np.flatnonzero(available)  # (m,)
    n_clusters = min(int(budget), len(free))
    if not n_clusters:
        return free[:0]
    rows = rows.subset(free)
    labels, centers = cluster(rows, n_clusters, seed, canonical_order=True)  # (m,), (C, d)
    distances = np.empty(len(free))
    for place, block in rows.blocks():
        offsets = block.astype(np.float64) - centers[labels[place]]  # (block, d)
        distances[place] = np.einsum("ij,ij->i", offsets, offsets)
    # No cluster is empty.
    order = np.lexsort((np.round(distances, 6), labels))  # (m,)
    nearest = order[np.searchsorted(labels[order], np.arange(n_clusters))]  # (C,)
    sizes = np.bincount(labels)  # (C,)
    return free[nearest[np.lexsort((nearest, -sizes))]]


class _Coverage:
    """How well each image of a task is represented by those that were added."""

    def __init__(self, rows: FeatureRows) -> None:
        self._vectors = rows.take(np.arange(len(rows)))  # (n, d)
        squares = np.einsum("ij,ij->i", self._vectors, self._vectors, dtype=np.float64)  # (n,)
        self._scale = 1 / np.sqrt(squares)[:, None]  # (n, 1)
        self._covered = np.zeros(len(rows))  # (n,), cosine to the most similar image that was added

    def add(self, images: IntVector) -> None:
        """Adds images by their row numbers."""
        for _, rows, cosines in self._tiles(images):
            self._covered[rows] = np.maximum(self._covered[rows], cosines.max(axis=1))

    def gains(self, images: IntVector) -> FloatVector:
        """How much each of the images would raise the mean if it alone were added, (c,) -> (c,)."""
        gains = np.zeros(len(images))
        for columns, rows, cosines in self._tiles(images):
            gains[columns] += np.maximum(cosines - self._covered[rows, None], 0).sum(axis=0)
        return round_for_ties(gains / len(self._covered))

    def _tiles(self, images: IntVector) -> Iterator[tuple[slice, slice, FloatMatrix]]:
        """Cosines of c images, the columns, to all images, the rows: slices of both, and a tile of cosines.

        In float64, since those of equal images differ by less than what counts as a tie.
        """
        for first in range(0, len(images), _TILE_COLUMNS):
            columns = slice(first, first + _TILE_COLUMNS)
            part = images[columns]
            chosen = (self._vectors[part] * self._scale[part]).T  # (d, columns), float64
            for start in range(0, len(self._vectors), _TILE_ROWS):
                rows = slice(start, start + _TILE_ROWS)
                yield columns, rows, self._vectors[rows].astype(np.float64) @ chosen * self._scale[rows]


def _check_mask(mask: BoolVector, name: str, n_rows: int) -> None:
    if mask.shape != (n_rows,) or mask.dtype != np.bool_:
        raise ValueError(
            f"{name} has shape {mask.shape} and type {mask.dtype}; it must be bool, one for each of the "
            f"{n_rows} images"
        )
