"""Stage `centrality`: the neighbor centrality of every image (eq. 7)."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.selection import Scope, task_centrality
from presel.selection.arrays import FloatVector, IntVector
from presel.selection.threads import for_each_task, many
from presel.stages.clusters import ClustersStage
from presel.stages.feature_groups import FeatureGroups
from presel.stages.reference import ReferenceStage
from presel.stages.results import TableStage
from presel.storage.executor import Sharded
from presel.storage.files import checked, map_array, read_arrays, write_arrays
from presel.storage.shards import ArrayShards
from presel.storage.store import Store

# Images of clusters that are read together, 100 MB in float16 at 768 dimensions.
_TOGETHER = 65_536

# What is scored together.
_PLAN = "parts/plan.npz"


@component
class Neighbors:
    """The nearest neighbors that neighbor centrality averages over (eq. 7).

    Attributes:
        k: Number of neighbors.
        scope: Whether neighbors are searched in the image's `cluster` or in its whole `task`.
    """

    k: Annotated[int, Field(ge=1)] = 5
    scope: Scope = "cluster"


@dataclass(frozen=True, kw_only=True)
class CentralityStage(TableStage, Sharded):
    """Neighbor centrality of every image outside the reference set, among such images only.

    Leaves `centrality.parquet`, by task and id: id, task, cluster, centrality (NaN in the reference set).

    Attributes:
        clusters: The images' clusters.
        reference: The images whose instructions are bought already.
        neighbors: Number and scope of the neighbors.
    """

    name: ClassVar[str] = "centrality"

    clusters: ClustersStage
    reference: ReferenceStage
    neighbors: Neighbors

    def compute(self, store: Store, folder: Path) -> None:
        """Scores group by group of whole clusters, or task by task where neighbors are searched in tasks."""
        features = store.load(self.clusters.features)
        table = store.load(self.clusters).sort_values(["task", "id"], ignore_index=True)
        free = ~table["id"].isin(store.load(self.reference)["id"]).to_numpy()
        rows = pd.Index(features.ids).get_indexer(pd.Index(table["id"]))
        labels = table["cluster"].to_numpy()
        in_tasks = [np.asarray(members) for members in table.groupby("task").indices.values()]
        groups = in_tasks
        if self.neighbors.scope == "cluster":
            groups = [group for members in in_tasks for group in _whole_clusters(members, labels)]
        members = np.concatenate(groups)  # (n,)
        write_arrays(
            folder / _PLAN,
            rows=rows[members],
            labels=labels[members],
            free=free[members],
            ends=np.cumsum(list(map(len, groups))),
        )
        shards = store.executor.compute(self, store, folder)
        scores = np.empty(len(table))  # (n,)
        scores[members] = np.concatenate([map_array(checked(file)) for file in shards.files])
        self.write(folder, table.assign(centrality=scores))
        shutil.rmtree(folder / "parts", ignore_errors=True)

    def shards(self, store: Store, folder: Path) -> ArrayShards[int]:
        """One shard for each group."""
        plan = read_arrays(folder / _PLAN)
        rows, labels, free = (np.split(plan[name], plan["ends"][:-1]) for name in ("rows", "labels", "free"))
        groups = FeatureGroups(store.load(self.clusters.features), rows, folder / "parts" / "features.npy")

        def scored(number: int) -> FloatVector:
            neighbors = self.neighbors
            return task_centrality(
                groups[number], labels[number], free[number], neighbors.k, scope=neighbors.scope
            )

        return ArrayShards(
            folder=folder / "parts",
            items=range(len(rows)),
            label="scoring tasks",
            to_batches=lambda shard: [shard],
            compute_batches=lambda batches: for_each_task(
                scored, [number for (number,) in batches], of=len(rows)
            ),
            size=1,
            name=lambda number: f"group {number}",
            device_independent=many(len(rows)),
        )


def _whole_clusters(members: IntVector, labels: IntVector) -> list[IntVector]:
    """Splits the members of a task, (m,), into groups of whole clusters that have 65,536 images or so.

    The order of a group's members is kept.
    """
    ends = np.cumsum(np.bincount(labels[members]))  # (C,)
    group_of = (ends - 1) // _TOGETHER  # (C,)
    order = np.argsort(group_of[labels[members]], kind="stable")  # (m,)
    return np.split(members[order], np.flatnonzero(np.diff(group_of[labels[members[order]]])) + 1)
