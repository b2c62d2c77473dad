"""Hierarchical k-means, whose cost is linear in the number of rows where plain k-means is quadratic."""

import math

import numpy as np

from presel.selection.apportionment import apportion
from presel.selection.arrays import Float32Matrix, IntVector
from presel.selection.feature_rows import FeatureRows
from presel.selection.kmeans.assignment import Assignment, assign
from presel.selection.kmeans.init import initial_centroids
from presel.selection.kmeans.lloyd import Settings, lloyd
from presel.selection.kmeans.refine import refine

# Clusters per plain k-means; at |T| / 100 clusters, a coarse cell then has about 12,800 rows.
LEAF_CLUSTERS = 128
# Small groups of rows of which cells are composed, and rows per group in the sample that finds the groups.
_GROUPS = 1024
_TRAINING_ROWS_PER_GROUP = 32


def plain(rows: FeatureRows, n_clusters: int, settings: Settings) -> Assignment:
    """Runs plain k-means on all rows: initial centroids, then Lloyd's algorithm."""
    rows = rows.for_many_passes()
    initial = initial_centroids(rows, n_clusters, settings)  # (C, d)
    # One more round of swaps, in full dimension: the sketch behind the initial centroids hides some bad ones.
    return lloyd(rows, initial, settings, swap_rounds=1)


def hierarchical(rows: FeatureRows, n_clusters: int, settings: Settings) -> Assignment:
    """Divides the rows into coarse cells, recursively, and runs plain k-means inside each cell.

    With C proportional to n, a pass of plain k-means costs n². Here each row is compared with a bounded
    number of centroids: 1,024 once, to find its cell, and those of its cell. The number of clusters of a cell
    is proportional to its rows. `refine` repairs the borders of the cells; even so, a row's centroid is not
    always the nearest of all. No cluster is empty.
    """
    if n_clusters <= LEAF_CLUSTERS:
        return plain(rows, n_clusters, settings)
    return refine(rows, _divide(rows, n_clusters, settings), settings)


def _divide(rows: FeatureRows, n_clusters: int, settings: Settings) -> Assignment:
    n_cells = min(LEAF_CLUSTERS, math.ceil(n_clusters / LEAF_CLUSTERS))
    groups, cells = cells_of_groups(rows, n_clusters, n_cells, settings)
    cell_of = cells[assign(rows, groups, settings.search).labels]  # (n,)
    sizes = np.bincount(cell_of, minlength=n_cells)  # (cells,)
    shares = clusters_of_cells(sizes, n_clusters)  # (cells,)
    labels = np.empty(len(rows), dtype=np.int64)
    distances = np.empty(len(rows), dtype=np.float32)
    centroids = np.empty((n_clusters, rows.dimension), dtype=np.float32)
    first = 0
    for cell in np.flatnonzero(sizes):
        members = np.flatnonzero(cell_of == cell)
        # Cells differ in size; one slightly larger than a leaf is cheaper to cluster than to divide again.
        # Equal rows cannot be divided.
        divisible = shares[cell] > 4 * LEAF_CLUSTERS and len(members) < len(rows)
        method = _divide if divisible else plain
        part = method(rows.subset(members), int(shares[cell]), settings)
        labels[members] = part.labels + first
        distances[members] = part.distances
        centroids[first : first + shares[cell]] = part.centroids
        first += int(shares[cell])
    return Assignment(labels, centroids, distances)


def clusters_of_cells(sizes: IntVector, n_clusters: int) -> IntVector:
    """Number of clusters of each cell, (cells,): one if it has rows, the others in proportion to these."""
    shares = np.minimum(sizes, 1)  # (cells,)
    return shares + apportion(sizes.astype(np.float64), sizes - shares, n_clusters - int(shares.sum()))


def cells_of_groups(
    rows: FeatureRows, n_clusters: int, n_cells: int, settings: Settings
) -> tuple[Float32Matrix, IntVector]:
    """Divides the space into cells along the borders of small groups.

    The border between two of a few coarse centroids would cut natural groups of rows in two. So a sample of
    the rows is clustered into many small groups, and the groups' centroids into cells; each row belongs to
    the cell of its nearest group.

    Returns:
        Centroids of the groups, (groups, d), and the cell of each, (groups,).
    """
    n_groups = min(_GROUPS, n_clusters)
    sample = rows
    if len(rows) > _TRAINING_ROWS_PER_GROUP * n_groups:
        drawn = settings.rng.choice(len(rows), _TRAINING_ROWS_PER_GROUP * n_groups, replace=False)
        sample = rows.subset(np.sort(drawn))
    groups = plain(sample, n_groups, settings).centroids  # (groups, d)
    return groups, plain(FeatureRows.trusted(groups), n_cells, settings).labels
