"""Divides a large task into cells of similar images, which are clustered one by one."""

import math

import numpy as np

from presel.selection.arrays import FloatVector, IntVector
from presel.selection.feature_rows import FeatureRows, Features
from presel.selection.kmeans.assignment import assign
from presel.selection.kmeans.hierarchical import cells_of_groups, clusters_of_cells
from presel.selection.kmeans.lloyd import Settings
from presel.selection.kmeans.search import search_by
from presel.selection.threads import for_each_task
from presel.storage.files import drop_cached_pages

# Raised when tasks are divided otherwise, which changes their clusters.
DIVISION_VERSION = 1
# Of a cell, which has 80,000 images at 100 a cluster: few enough for plain k-means. From 128 cells on, cells
# grow instead of their number.
CLUSTERS_PER_CELL = 800
_MOST_CELLS = 128
# Rows of which the sample is drawn that decides the cells, and rows that a thread reads at a time.
_SAMPLE = 65_536
_SLICE = 65_536


def divide(features: Features, rows: IntVector, n_clusters: int, seed: int) -> list[tuple[IntVector, int]]:
    """Divides a task whose vectors may exceed memory; no more than a slice for each thread is read at a time.

    The cells depend neither on the order of the pool nor on the number of threads: the sample is drawn from
    an order that the vectors decide, and two passes over the file, one for that order and one for each
    image's cell, treat every vector by itself.

    Args:
        features: The features of the pool.
        rows: Rows of the task's images, (n,).
        n_clusters: Clusters that the task gets.
        seed: Seeds the sample and the k-means that finds the cells.

    Returns:
        Rows of each cell, in the order of `rows`, and its number of clusters; these sum to `n_clusters`.

    Raises:
        ValueError: If a vector is refused, see `FeatureRows`.
    """
    order = np.argsort(rows)  # (n,)
    ascending = rows[order]
    slices = [ascending[start : start + _SLICE] for start in range(0, len(rows), _SLICE)]
    settings = Settings(search_by("auto"), np.random.default_rng(seed))

    def read(part: IntVector) -> FeatureRows:
        return FeatureRows(features.array, index=part, normalize=True, ids=features.ids)

    def keys(part: IntVector) -> FloatVector:
        found = read(part).content_keys()
        drop_cached_pages(features.array)
        return found

    def groups_near(part: IntVector) -> IntVector:
        found = assign(read(part), groups, settings.search).labels
        drop_cached_pages(features.array)
        return found

    all_keys = np.concatenate(list(for_each_task(keys, slices)))  # (n,)
    by_content = ascending[FeatureRows.trusted(features.array, ascending).content_order(all_keys)]  # (n,)
    drawn = settings.rng.choice(len(rows), min(_SAMPLE, len(rows)), replace=False)
    n_cells = min(_MOST_CELLS, math.ceil(n_clusters / CLUSTERS_PER_CELL))
    # In memory, since k-means on rows from all over the file would keep most of it there.
    sample = features.array[by_content[np.sort(drawn)]]  # (65,536, d) at most
    drop_cached_pages(features.array)
    groups, cells = cells_of_groups(FeatureRows(sample, normalize=True), n_clusters, n_cells, settings)
    cell_of = np.empty(len(rows), np.int64)
    cell_of[order] = cells[np.concatenate(list(for_each_task(groups_near, slices)))]
    shares = clusters_of_cells(np.bincount(cell_of, minlength=n_cells), n_clusters)  # (cells,)
    return [(rows[cell_of == cell], int(shares[cell])) for cell in np.flatnonzero(shares)]
