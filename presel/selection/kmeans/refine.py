"""Mending what a division into cells has cut apart, at a cost that grows with the number of rows.

A cell's border may cut a natural group in two, each half with a centroid of its own, or leave a row on the
wrong side. So centroids of all cells together are swapped (`swaps`), and rows are assigned
again among the centroids around their own, which needs no search through all of them.
"""

import math

import numpy as np

from presel.selection.feature_rows import FeatureRows, Float32Matrix
from presel.selection.kmeans.assignment import Clustering, cluster_means, grouped, refill_empty
from presel.selection.kmeans.lloyd import Settings, lloyd
from presel.selection.kmeans.swaps import swap

_ROUNDS = 2
# Centroids per group, and groups that a row searches.
_GROUP = 100
_PROBES = 3


def refine(rows: FeatureRows, current: Clustering, settings: Settings) -> Clustering:
    """Improves clusters by rounds of swaps and local assignment.

    Args:
        rows: n vectors.
        current: Their clusters, none empty.
        settings: Rounds end early when one lowers the inertia by less than the tolerance.

    Returns:
        As many clusters, none empty, of no higher inertia.
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


def _assign(rows: FeatureRows, centroids: Float32Matrix, settings: Settings) -> Clustering:
    """Assigns each row to the nearest centroid in the groups nearest to it; refills empty clusters."""
    n_groups = math.ceil(len(centroids) / _GROUP)
    grouping = lloyd(FeatureRows.trusted(centroids), centroids[::_GROUP][:n_groups].copy(), settings)
    order, bounds = grouped(grouping.labels, n_groups)
    members = [order[bounds[group] : bounds[group + 1]] for group in range(n_groups)]
    searchers = [settings.backend.searcher(centroids[group]) for group in members]
    labels = np.zeros(len(rows), dtype=np.int64)
    distances = np.full(len(rows), np.inf, dtype=np.float32)
    half_norms = np.einsum("ij,ij->i", grouping.centroids, grouping.centroids) / 2
    probes = min(_PROBES, n_groups)
    for place, block in rows.blocks():
        scores = half_norms - block @ grouping.centroids.T
        probed = np.argpartition(scores, probes - 1, axis=1)[:, :probes]
        for group in range(n_groups):
            near = np.flatnonzero((probed == group).any(axis=1))
            if not len(near):
                continue
            found, distance = searchers[group](block[near])
            closer = distance < distances[place][near]
            distances[place][near[closer]] = distance[closer]
            labels[place][near[closer]] = members[group][found[closer]]
    result = Clustering(labels, centroids, distances)
    refill_empty(rows, result)
    return result
