"""Moving centroids from where they are hardly needed to where they are missing.

Lloyd's algorithm moves a centroid only a little; one that shares a group of rows with another, while two
groups elsewhere share one, stays where it is. Comparing what a merge costs with what a split gains finds such
cases.
"""

import numpy as np
import numpy.typing as npt

from presel.selection.feature_rows import FeatureRows, Float32Matrix, IntVector
from presel.selection.kmeans.assignment import Clustering, grouped


def swap(points: FeatureRows, current: Clustering, centroids: Float32Matrix) -> bool:
    """Moves centroids from pairs that are cheap to merge to clusters that gain from a split.

    Args:
        points: n vectors.
        current: Their clusters, none empty.
        centroids: The means of these clusters, shape (C, d), changed in place.

    Returns:
        Whether any has moved.
    """
    n_clusters = len(centroids)
    counts = np.bincount(current.labels, minlength=n_clusters).astype(np.float64)
    gains, halves = _split_gains(points, current, centroids)
    partner, costs = _merge_costs(centroids, counts)
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
        centroids[other] = np.average(centroids[[giver, other]], axis=0, weights=counts[[giver, other]])
        centroids[giver], centroids[split] = halves[split]
        touched[[giver, other, split]] = True
    return bool(touched.any())


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
    points: FeatureRows, current: Clustering, centroids: Float32Matrix
) -> tuple[npt.NDArray[np.float64], Float32Matrix]:
    """Estimates by a short 2-means how far a split lowers the inertia of each cluster.

    The half of the clusters with less inertia is left out: it has the least to gain, and since a swap takes
    three clusters, no more than a third can be split.

    Returns:
        Gains, shape (C,), and the centroids of both halves, shape (C, 2, d).
    """
    gains = np.zeros(len(centroids))
    halves = np.repeat(centroids[:, None], 2, axis=1)
    order, bounds = grouped(current.labels, len(centroids))
    inertias = np.bincount(current.labels, weights=current.distances, minlength=len(centroids))
    worse_half = np.argsort(-inertias, kind="stable")[: len(centroids) // 2 + 1]
    for label in worse_half[np.diff(bounds)[worse_half] >= 4]:
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
