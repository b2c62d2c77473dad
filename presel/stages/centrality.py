"""Stage `centrality`: the neighbor centrality of every image (eq. 7)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pandas as pd
from pydantic import Field

from presel.component import component
from presel.selection import FeatureRows, Scope, task_centrality
from presel.stages.clusters import ClustersStage
from presel.stages.reference import ReferenceStage
from presel.stages.results import TableStage
from presel.storage.store import Store


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
class CentralityStage(TableStage):
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
        """Scores task by task."""
        features = store.load(self.clusters.features)
        table = store.load(self.clusters).sort_values(["task", "id"], ignore_index=True)
        free = ~table["id"].isin(store.load(self.reference)["id"]).to_numpy()
        rows = pd.Index(features.ids).get_indexer(table["id"])
        labels, names = table["cluster"].to_numpy(), features.ids.tolist()
        for members in table.groupby("task").indices.values():
            vectors = FeatureRows(features.array, index=rows[members], normalize=True, ids=names)
            table.loc[members, "centrality"] = task_centrality(
                vectors, labels[members], free[members], self.neighbors.k, scope=self.neighbors.scope
            )
        self.write(folder, table)
