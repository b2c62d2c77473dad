"""Lloyd's algorithm with swaps, also in its spherical form."""

from dataclasses import dataclass

import numpy as np

from presel.selection.arrays import Float32Matrix
from presel.selection.feature_rows import FeatureRows
from presel.selection.kmeans.assignment import Assignment, assign, cluster_means, refill_empty
from presel.selection.kmeans.search import MakeSearch, search_by
from presel.selection.kmeans.swaps import swap


@dataclass(frozen=True)
class Settings:
    """How a k-means runs.

    Attributes:
        search: Nearest-centroid search, see `kmeans.search`.
        rng: Source of all random draws.
        max_iterations: Passes over the rows, at least 1.
        tolerance: Stop when a pass lowers the inertia by less than this share of it.
    """

    search: MakeSearch
    rng: np.random.Generator
    max_iterations: int = 25
    tolerance: float = 5e-3


def lloyd(
    rows: FeatureRows,
    centroids: Float32Matrix,
    settings: Settings,
    *,
    swap_rounds: int = 0,
    spherical: bool = False,
) -> Assignment:
    """Alternates assignment and cluster means until the inertia hardly falls; leaves no cluster empty.

    An empty cluster is given the row farthest from its centroid among clusters of two rows or more (the first
    of equally far ones). Every other row is assigned to the nearest of the returned centroids.

    Args:
        rows: n vectors.
        centroids: Initial centroids, shape (C, d), C at most n.
        settings: How to run; no random draw is made here.
        swap_rounds: Number of first passes after which centroids are swapped too (`kmeans.swaps`); fewer if a
            round finds nothing to swap.
        spherical: Whether to scale centroids to norm 1, as the rows are: the nearest centroid is then the one
            of largest cosine.
    """
    previous = np.inf
    for iteration in range(1, settings.max_iterations + 1):
        result = assign(rows, centroids, settings.search)  # labels and distances (n,)
        refilled = refill_empty(rows, result)
        inertia = float(result.distances.sum(dtype=np.float64))
        settled = inertia == 0 or (not refilled and inertia >= (1 - settings.tolerance) * previous)
        if settled or iteration == settings.max_iterations:
            break
        centroids = cluster_means(rows, result.labels, len(centroids))  # (C, d)
        if spherical:
            centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
        if iteration <= swap_rounds and not swap(rows, result, centroids):
            swap_rounds = 0
        previous = inertia
    return result


def spherical_kmeans(
    rows: FeatureRows, n_clusters: int, rng: np.random.Generator, max_iterations: int
) -> Assignment:
    """Clusters vectors of norm 1 by their cosine to centroids of norm 1 (Dhillon and Modha, 2001).

    The initial centroids are rows drawn at random. No cluster is empty; the passes, `max_iterations` at most,
    end once the cosines no longer rise.
    """
    start = rows.take(np.sort(rng.choice(len(rows), n_clusters, replace=False)))  # (C, d)
    settings = Settings(search_by("auto"), rng, max_iterations, tolerance=0.0)
    return lloyd(rows, start, settings, spherical=True)
