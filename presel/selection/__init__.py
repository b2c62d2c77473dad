"""Selects images by allocation (eq. 6), clustering and neighbor centrality (eq. 7), on NumPy arrays."""

from presel.selection.allocation import (
    ClusterMode,
    TaskMode,
    allocate_clusters,
    allocate_tasks,
    fill_tasks,
)
from presel.selection.centrality import neighbor_centrality
from presel.selection.clustering import ClusterBackend, cluster, number_of_clusters
from presel.selection.feature_rows import FeatureRows
from presel.selection.picking import (
    Scope,
    id_order,
    most_central,
    select_from_task,
    task_centrality,
)

__all__ = [
    "ClusterBackend",
    "ClusterMode",
    "FeatureRows",
    "Scope",
    "TaskMode",
    "allocate_clusters",
    "allocate_tasks",
    "cluster",
    "fill_tasks",
    "id_order",
    "most_central",
    "neighbor_centrality",
    "number_of_clusters",
    "select_from_task",
    "task_centrality",
]
