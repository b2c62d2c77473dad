"""Lloyd's algorithm with swaps, the same for every backend."""

from dataclasses import dataclass

import numpy as np

from presel.selection.feature_rows import FeatureRows, Float32Matrix
from presel.selection.kmeans.assignment import Clustering, assign, cluster_means, refill_empty
from presel.selection.kmeans.search import Backend, load_best
from presel.selection.kmeans.swaps import swap


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


def lloyd(
    rows: FeatureRows,
    centroids: Float32Matrix,
    settings: Settings,
    *,
    swap_rounds: int = 0,
    spherical: bool = False,
) -> Clustering:
    """Moves centroids to the means of their rows until the inertia hardly falls, leaving no cluster empty.

    An empty cluster takes the row farthest from its centroid among clusters of two rows or more (of equally
    far ones the first), and goes on from there.

    Args:
        rows: n vectors.
        centroids: The start, shape (C, d), C at most n.
        settings: How to run; no random draw is made here.
        swap_rounds: After how many of the first passes centroids are swapped too (`swaps`);
            fewer if a round finds nothing to swap.
        spherical: Whether to scale centroids to length 1, as the rows are: the nearest one is then that of
            the largest cosine.

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
        if spherical:
            centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
        if iteration <= swap_rounds and not swap(rows, result, centroids):
            swap_rounds = 0
        previous = inertia
    return result


def spherical_kmeans(
    rows: FeatureRows, n_clusters: int, rng: np.random.Generator, max_iterations: int
) -> Clustering:
    """Divides vectors by their cosine to centroids of length 1 (Dhillon and Modha, 2001).

    Args:
        rows: n vectors of length 1.
        n_clusters: C, from 1 to n.
        rng: Draws the rows that are the first centroids.
        max_iterations: Passes over the rows, at least 1; fewer once the cosines no longer rise.

    Returns:
        Every row with the nearest centroid; C clusters, none empty.
    """
    start = rows.take(np.sort(rng.choice(len(rows), n_clusters, replace=False)))
    return lloyd(rows, start, Settings(load_best(), rng, max_iterations, tolerance=0.0), spherical=True)
