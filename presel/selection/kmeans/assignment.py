"""One pass over the rows: nearest centroids, cluster means, and rows for empty clusters."""

from typing import NamedTuple

import numpy as np

from presel.selection.arrays import Float32Matrix, Float32Vector, IntVector
from presel.selection.feature_rows import FeatureRows
from presel.selection.kmeans.search import MakeSearch


class Assignment(NamedTuple):
    """Rows assigned to centroids: the cluster of every row, and its squared distance to the centroid."""

    labels: IntVector  # (n,)
    centroids: Float32Matrix  # (C, d)
    distances: Float32Vector  # (n,)


def assign(rows: FeatureRows, centroids: Float32Matrix, search: MakeSearch) -> Assignment:
    """Assigns every row to its nearest centroid, in one pass."""
    nearest = search(centroids)
    labels = np.empty(len(rows), dtype=np.int64)
    distances = np.empty(len(rows), dtype=np.float32)
    for place, block in rows.blocks():  # (rows of the block, d)
        labels[place], distances[place] = nearest(block)
    return Assignment(labels, centroids, distances)


def cluster_means(rows: FeatureRows, labels: IntVector, n_clusters: int) -> Float32Matrix:
    """Averages the rows of each cluster, none of which may be empty: (n_clusters, d)."""
    sums = np.zeros((n_clusters, rows.dimension))  # (C, d)
    for place, block in rows.blocks():
        order, bounds = grouped(labels[place], n_clusters)
        for label in np.flatnonzero(np.diff(bounds)):
            sums[label] += block[order[bounds[label] : bounds[label + 1]]].sum(axis=0)
    counts = np.bincount(labels, minlength=n_clusters)  # (C,)
    return (sums / counts[:, None]).astype(np.float32)


def grouped(labels: IntVector, n_clusters: int) -> tuple[IntVector, IntVector]:
    """Sorts rows by label: `order`, (n,), and `bounds`, (n_clusters + 1,).

    Cluster c has the rows `order[bounds[c] : bounds[c + 1]]`.
    """
    # NumPy sorts short integers by radix sort, several times as fast.
    order = np.argsort(labels.astype(np.min_scalar_type(n_clusters)), kind="stable")
    return order, np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=n_clusters))])


def refill_empty(rows: FeatureRows, result: Assignment) -> bool:
    """Gives each empty cluster one row, in place; returns whether there was an empty one."""
    counts = np.bincount(result.labels, minlength=len(result.centroids))  # (C,)
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
