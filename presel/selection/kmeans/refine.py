"""Repairs clusters at the borders of the cells of `kmeans.hierarchical`, in linear time.

A border may split a natural group of rows into two clusters, or separate a row from its nearest centroid. So
the centroids of all cells are swapped together (`kmeans.swaps`), and each row is assigned again among the
centroids near it, without a search through all of them.
"""

import math

import numpy as np

from presel.selection.arrays import Float32Matrix
from presel.selection.feature_rows import FeatureRows
from presel.selection.kmeans.assignment import Assignment, cluster_means, grouped, refill_empty
from presel.selection.kmeans.lloyd import Settings, lloyd
from presel.selection.kmeans.swaps import swap

_ROUNDS = 2
# Centroids per group, and groups searched per row.
_GROUP = 100
_PROBES = 3


def refine(rows: FeatureRows, current: Assignment, settings: Settings) -> Assignment:
    """Improves clusters by rounds of swaps and local assignment; none is empty before or after.

    Rounds end early when one lowers the inertia by less than the tolerance; it never rises.
    """
    for _ in range(_ROUNDS):
        centroids = cluster_means(rows, current.labels, len(current.centroids))
        swap(rows, current, centroids)
        better = _assign(rows, centroids, settings)
        before, after = (float(c.distances.sum(dtype=np.float64)) for c in (current, better))
        if after < before:
            current = better
        if after >= (1 - settings.tolerance) * before:
            break
    return current


def _assign(rows: FeatureRows, centroids: Float32Matrix, settings: Settings) -> Assignment:
    """Assigns each row to the nearest centroid in the groups nearest to it; refills empty clusters."""
    n_groups = math.ceil(len(centroids) / _GROUP)
    grouping = lloyd(FeatureRows.trusted(centroids), centroids[::_GROUP][:n_groups].copy(), settings)
    order, bounds = grouped(grouping.labels, n_groups)
    members = [order[bounds[group] : bounds[group + 1]] for group in range(n_groups)]
    searchers = [settings.search(centroids[group]) for group in members]
    labels = np.zeros(len(rows), dtype=np.int64)
    distances = np.full(len(rows), np.inf, dtype=np.float32)
    half_norms = np.einsum("ij,ij->i", grouping.centroids, grouping.centroids) / 2  # (groups,)
    probes = min(_PROBES, n_groups)
    for place, block in rows.blocks():
        scores = half_norms - block @ grouping.centroids.T  # (block, groups)
        probed = np.argpartition(scores, probes - 1, axis=1)[:, :probes]  # (block, probes)
        for group in range(n_groups):
            near = np.flatnonzero((probed == group).any(axis=1))  # (m,)
            if not len(near):
                continue
            found, distance = searchers[group](block[near])  # (m,), (m,)
            closer = distance < distances[place][near]
            distances[place][near[closer]] = distance[closer]
            labels[place][near[closer]] = members[group][found[closer]]
    result = Assignment(labels, centroids, distances)
    refill_empty(rows, result)
    return result
