"""Moving centroids from where they are hardly needed to where they are missing.

Lloyd's algorithm moves a centroid only a little; one that shares a group of rows with another, while two
groups elsewhere share one, stays where it is. Comparing what a merge costs with what a split gains finds such
cases.
"""

import numpy as np
import numpy.typing as npt

from presel.selection.kmeans import Clustering, cluster_means, grouped
from presel.selection.rows import FeatureRows, Float32Matrix, IntVector


def swap(points: FeatureRows, current: Clustering) -> Float32Matrix | None:
    """Moves centroids from pairs that are cheap to merge to clusters that gain from a split.

    Args:
        points: n vectors.
        current: Their clusters, none empty.

    Returns:
        The centroids after some have moved, shape (C, d), or None where no move pays.
    """
    n_clusters = len(current.centroids)
    counts = np.bincount(current.labels, minlength=n_clusters).astype(np.float64)
    centroids = cluster_means(points, current.labels, n_clusters)
    gains, halves = _split_gains(points, current.labels, centroids)
    partner, costs = _merge_costs(centroids, counts)
    moved = centroids.copy()
    touched = np.zeros(n_clusters, dtype=np.bool_)
    splits = iter(np.argsort(-gains, kind="stable"))
    for giver in np.argsort(costs, kind="stable"):
        other = partner[giver]
        if touched[giver] or touched[other]:
            continue
        split = next((s for s in splits if not touched[s] and s not in (giver, other)), None)
        # A tenth of margin, because both numbers are estimates before the next passes.
        if split is None or gains[split] <= 1.1 * costs[giver]:
            break
        moved[other] = np.average(centroids[[giver, other]], axis=0, weights=counts[[giver, other]])
        moved[giver], moved[split] = halves[split]
        touched[[giver, other, split]] = True
    return moved if touched.any() else None


def _merge_costs(
    centroids: Float32Matrix, counts: npt.NDArray[np.float64]
) -> tuple[IntVector, npt.NDArray[np.float64]]:
    """Finds for every cluster the partner with which merging adds least to the inertia, and how much."""
    partner = np.empty(len(centroids), dtype=np.int64)
    costs = np.empty(len(centroids))
    norms = np.einsum("ij,ij->i", centroids, centroids)
    for start in range(0, len(centroids), 1024):
        part = np.arange(start, min(start + 1024, len(centroids)))
        distances = np.maximum(norms[part, None] + norms - 2 * centroids[part] @ centroids.T, 0)
        weight = counts[part, None] * counts / (counts[part, None] + counts)
        cost = distances * weight
        cost[np.arange(len(part)), part] = np.inf
        partner[part] = cost.argmin(axis=1)
        costs[part] = cost[np.arange(len(part)), partner[part]]
    return partner, costs


def _split_gains(
    points: FeatureRows, labels: IntVector, centroids: Float32Matrix
) -> tuple[npt.NDArray[np.float64], Float32Matrix]:
    """Estimates by a short 2-means how far a split lowers the inertia of each cluster.

    Returns:
        Gains, shape (C,), and the centroids of both halves, shape (C, 2, d).
    """
    gains = np.zeros(len(centroids))
    halves = np.repeat(centroids[:, None], 2, axis=1)
    order, bounds = grouped(labels, len(centroids))
    for label in np.flatnonzero(np.diff(bounds) >= 4):
        members = points.take(order[bounds[label] : bounds[label + 1]]) - centroids[label]
        direction = members[np.einsum("ij,ij->i", members, members).argmax()]
        threshold = 0.0
        for _ in range(3):
            side = members @ direction > threshold
            size = int(side.sum())
            if not 0 < size < len(members):
                break
            near = side.astype(np.float32) @ members / size
            # The members' mean is 0, so the other half's mean follows.
            far = near * (-size / (len(members) - size))
            direction = near - far
            threshold = float(near @ near - far @ far) / 2
            gains[label] = size * (len(members) - size) / len(members) * float(direction @ direction)
            halves[label, 0], halves[label, 1] = centroids[label] + near, centroids[label] + far
    return gains, halves
