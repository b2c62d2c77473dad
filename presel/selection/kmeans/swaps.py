"""Swaps: merges two close clusters and splits a wide one, where that lowers the inertia.

Lloyd's algorithm moves centroids only locally. Where two centroids share one group of rows while two other
groups share a single centroid, it stops in a local minimum; comparing the inertia that a merge adds with the
inertia that a split removes finds such cases.
"""

import numpy as np

from presel.selection.arrays import Float32Matrix, FloatVector, IntVector
from presel.selection.feature_rows import FeatureRows
from presel.selection.kmeans.assignment import Assignment, grouped


def swap(points: FeatureRows, current: Assignment, centroids: Float32Matrix) -> bool:
    """Moves centroids from pairs that are cheap to merge to clusters that gain from a split, in place.

    The centroids, (C, d), are the means of the current clusters. Returns whether any was moved.
    """
    n_clusters = len(centroids)
    counts = np.bincount(current.labels, minlength=n_clusters).astype(np.float64)  # (C,)
    gains, halves = _split_gains(points, current, centroids)  # (C,), (C, 2, d)
    partner, costs = _merge_costs(centroids, counts)  # (C,), (C,)
    touched = np.zeros(n_clusters, dtype=np.bool_)
    splits = iter(np.argsort(-gains, kind="stable"))
    for giver in np.argsort(costs, kind="stable"):
        other = partner[giver]
        if touched[giver] or touched[other]:
            continue
        split = next((s for s in splits if not touched[s] and s not in (giver, other)), None)
        # A margin of a tenth, because gain and cost are estimates.
        if split is None or gains[split] <= 1.1 * costs[giver]:
            break
        centroids[other] = np.average(centroids[[giver, other]], axis=0, weights=counts[[giver, other]])
        centroids[giver], centroids[split] = halves[split]
        touched[[giver, other, split]] = True
    return bool(touched.any())


def _merge_costs(centroids: Float32Matrix, counts: FloatVector) -> tuple[IntVector, FloatVector]:
    """Finds for every cluster the partner whose merge adds least to the inertia, (C,), and how much, (C,)."""
    partner = np.empty(len(centroids), dtype=np.int64)
    costs = np.empty(len(centroids))
    norms = np.einsum("ij,ij->i", centroids, centroids)  # (C,)
    for start in range(0, len(centroids), 1024):
        part = np.arange(start, min(start + 1024, len(centroids)))  # (p,)
        distances = np.maximum(norms[part, None] + norms - 2 * centroids[part] @ centroids.T, 0)  # (p, C)
        weight = counts[part, None] * counts / (counts[part, None] + counts)  # (p, C)
        cost = distances * weight
        cost[np.arange(len(part)), part] = np.inf
        partner[part] = cost.argmin(axis=1)
        costs[part] = cost[np.arange(len(part)), partner[part]]
    return partner, costs


def _split_gains(
    points: FeatureRows, current: Assignment, centroids: Float32Matrix
) -> tuple[FloatVector, Float32Matrix]:
    """Estimates by a short 2-means how much a split lowers the inertia of each cluster.

    The half of the clusters with the lower inertia is skipped: a swap involves three clusters, so that no
    more than a third can be split. Returns gains, (C,), and the centroids of both halves, (C, 2, d).
    """
    gains = np.zeros(len(centroids))
    halves = np.repeat(centroids[:, None], 2, axis=1)
    order, bounds = grouped(current.labels, len(centroids))
    inertias = np.bincount(current.labels, weights=current.distances, minlength=len(centroids))
    worse_half = np.argsort(-inertias, kind="stable")[: len(centroids) // 2 + 1]
    for label in worse_half[np.diff(bounds)[worse_half] >= 4]:
        members = points.take(order[bounds[label] : bounds[label + 1]]) - centroids[label]  # (m, d)
        direction = members[np.einsum("ij,ij->i", members, members).argmax()]  # (d,)
        threshold = 0.0
        for _ in range(3):
            side = members @ direction > threshold  # (m,)
            size = int(side.sum())
            if not 0 < size < len(members):
                break
            near = side.astype(np.float32) @ members / size  # (d,)
            # The members' mean is 0, which gives the other half's mean.
            far = near * (-size / (len(members) - size))
            direction = near - far
            threshold = float(near @ near - far @ far) / 2
            gains[label] = size * (len(members) - size) / len(members) * float(direction @ direction)
            halves[label, 0], halves[label, 1] = centroids[label] + near, centroids[label] + far
    return gains, halves
