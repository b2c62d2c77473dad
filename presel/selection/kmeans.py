"""Lloyd's algorithm over blocks of rows, the same for every backend."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from presel.selection.backends import Backend
from presel.selection.rows import FeatureRows, Float32Matrix, IntVector


class Clustering(NamedTuple):
    """A division of rows among centroids.

    Attributes:
        labels: Cluster of every row, shape (n,).
        centroids: Shape (C, d).
        distances: Squared distance of every row to its centroid, shape (n,).
    """

    labels: IntVector
    centroids: Float32Matrix
    distances: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """How a k-means runs.

    Attributes:
        backend: Who searches the nearest centroid.
        rng: Source of all draws.
        max_iterations: Passes over the rows, at least 1.
        tolerance: Stop when a pass lowers the inertia by less than this share of it.
    """

    backend: Backend
    rng: np.random.Generator
    max_iterations: int
    tolerance: float


def lloyd(rows: FeatureRows, centroids: Float32Matrix, settings: Settings) -> Clustering:
    """Moves centroids to the means of their rows until the inertia hardly falls, leaving no cluster empty.

    An empty cluster takes the row farthest from its centroid among clusters of two rows or more (of equally
    far ones the first), and goes on from there.

    Args:
        rows: n vectors.
        centroids: The start, shape (C, d), C at most n.
        settings: How to run; no random draw is made here.

    Returns:
        Every row with the nearest of the returned centroids; C clusters, none empty.
    """
    previous = np.inf
    for iteration in range(1, settings.max_iterations + 1):
        result = assign(rows, centroids, settings.backend)
        refilled = refill_empty(rows, result)
        inertia = float(result.distances.sum(dtype=np.float64))
        settled = inertia == 0 or (not refilled and inertia >= (1 - settings.tolerance) * previous)
        if settled or iteration == settings.max_iterations:
            break
        centroids = cluster_means(rows, result.labels, len(centroids))
        previous = inertia
    return result


def assign(rows: FeatureRows, centroids: Float32Matrix, backend: Backend) -> Clustering:
    """Gives every row to its nearest centroid, in one pass."""
    nearest = backend.searcher(centroids)
    labels = np.empty(len(rows), dtype=np.int64)
    distances = np.empty(len(rows), dtype=np.float32)
    for place, block in rows.blocks():
        labels[place], distances[place] = nearest(block)
    return Clustering(labels, centroids, distances)


def cluster_means(rows: FeatureRows, labels: IntVector, n_clusters: int) -> Float32Matrix:
    """Averages the rows of each cluster, none of which may be empty.

    Returns:
        Shape (n_clusters, d).
    """
    sums = np.zeros((n_clusters, rows.dimension))
    for place, block in rows.blocks():
        order, bounds = grouped(labels[place], n_clusters)
        for label in np.flatnonzero(np.diff(bounds)):
            sums[label] += block[order[bounds[label] : bounds[label + 1]]].sum(axis=0)
    counts = np.bincount(labels, minlength=n_clusters)
    return (sums / counts[:, None]).astype(np.float32)


def grouped(labels: IntVector, n_clusters: int) -> tuple[IntVector, IntVector]:
    """Sorts rows by label.

    Returns:
        Row numbers, and bounds of shape (n_clusters + 1,): cluster c owns `order[bounds[c]:bounds[c + 1]]`.
    """
    order = np.argsort(labels, kind="stable")
    return order, np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=n_clusters))])


def refill_empty(rows: FeatureRows, result: Clustering) -> bool:
    """Gives each empty cluster a row of its own, in place; says whether there was any."""
    counts = np.bincount(result.labels, minlength=len(result.centroids))
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return False
    farthest = iter(np.argsort(-result.distances, kind="stable"))
    for label in empty:
        row = next(row for row in farthest if counts[result.labels[row]] > 1)
        counts[result.labels[row]] -= 1
        counts[label] = 1
        result.labels[row] = label
        result.distances[row] = 0
        result.centroids[label] = rows.take(np.array([row]))[0]
    return True
