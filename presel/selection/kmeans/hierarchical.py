"""K-means on several levels, whose cost grows with the number of rows and not with its square."""

import math

import numpy as np

from presel.selection.apportionment import apportion
from presel.selection.feature_rows import FeatureRows, IntVector
from presel.selection.kmeans.assignment import Clustering, assign
from presel.selection.kmeans.init import starting_centroids
from presel.selection.kmeans.lloyd import Settings, lloyd
from presel.selection.kmeans.refine import refine

# Clusters that one plain k-means makes; a coarse cell then holds some 12,800 rows at |T| / 100 clusters.
LEAF_CLUSTERS = 128
# Small groups, of which cells are made, and the rows of the sample that finds them.
_GROUPS = 1024
_TRAINING_ROWS_PER_GROUP = 32


def plain(rows: FeatureRows, n_clusters: int, settings: Settings) -> Clustering:
    """Runs k-means on all rows at once: a good start, then Lloyd's algorithm."""
    rows = rows.for_many_passes()
    start = starting_centroids(rows, n_clusters, settings)
    # Once more in full dimension: the stand-in in which the start was found cannot show every mistake.
    return lloyd(rows, start, settings, swap_rounds=1)


def hierarchical(rows: FeatureRows, n_clusters: int, settings: Settings) -> Clustering:
    """Divides the rows into coarse cells, and each cell again, until plain k-means can make the clusters.

    With C proportional to n, plain k-means costs n² per pass; here a row meets
    a bounded number of centroids: 1,024 once, to find its cell, and those of its cell. Every cell gets
    clusters in proportion to its rows.

    Args:
        rows: n vectors.
        n_clusters: C, at most n.
        settings: How each k-means runs.

    Returns:
        C clusters, none empty. The borders of the cells are mended by `refine`; still a
        row can belong to a centroid that is not the nearest of all.
    """
    if n_clusters <= LEAF_CLUSTERS:
        return plain(rows, n_clusters, settings)
    return refine(rows, _divide(rows, n_clusters, settings), settings)


def _divide(rows: FeatureRows, n_clusters: int, settings: Settings) -> Clustering:
    n_cells = min(LEAF_CLUSTERS, math.ceil(n_clusters / LEAF_CLUSTERS))
    cell_of = _cells(rows, n_clusters, n_cells, settings)
    sizes = np.bincount(cell_of, minlength=n_cells)
    # One cluster for each cell that has rows, the others in proportion.
    shares = np.minimum(sizes, 1)
    shares += apportion(sizes.astype(np.float64), sizes - shares, n_clusters - int(shares.sum()))
    labels = np.empty(len(rows), dtype=np.int64)
    distances = np.empty(len(rows), dtype=np.float32)
    centroids = np.empty((n_clusters, rows.dimension), dtype=np.float32)
    first = 0
    for cell in np.flatnonzero(sizes):
        members = np.flatnonzero(cell_of == cell)
        # Cells differ in size; one somewhat above the leaves' size is cheaper in one go than divided again.
        method = plain if shares[cell] <= 4 * LEAF_CLUSTERS else _divide
        part = method(rows.subset(members), int(shares[cell]), settings)
        labels[members] = part.labels + first
        distances[members] = part.distances
        centroids[first : first + shares[cell]] = part.centroids
        first += int(shares[cell])
    return Clustering(labels, centroids, distances)


def _cells(rows: FeatureRows, n_clusters: int, n_cells: int, settings: Settings) -> IntVector:
    """Divides the rows into cells along the borders of small groups.

    The border between two of a few coarse centroids runs through the middle of natural groups. So a sample
    gives many small groups, the groups are divided into cells, and rows go with the group nearest to them.

    Returns:
        The cell of every row, shape (n,).
    """
    n_groups = min(_GROUPS, n_clusters)
    sample = rows
    if len(rows) > _TRAINING_ROWS_PER_GROUP * n_groups:
        drawn = settings.rng.choice(len(rows), _TRAINING_ROWS_PER_GROUP * n_groups, replace=False)
        sample = rows.subset(np.sort(drawn))
    groups = plain(sample, n_groups, settings).centroids
    cells = plain(FeatureRows.trusted(groups), n_cells, settings).labels
    return cells[assign(rows, groups, settings.backend).labels]
