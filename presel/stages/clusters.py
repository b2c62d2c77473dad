"""Stage `clusters`: k-means on the features of each task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.console import progress
from presel.selection import ClusterBackend, FeatureRows, cluster, number_of_clusters
from presel.selection.arrays import Float32Matrix, IntVector
from presel.selection.threads import for_each_task
from presel.stages.features import FeaturesStage
from presel.stages.pool import Pool
from presel.stages.results import TableStage
from presel.stages.tasks import DiscoveredTasksStage
from presel.storage.files import write_array
from presel.storage.store import Store


@component
class Clustering:
    """How the images of a task are clustered.

    Attributes:
        images_per_cluster: A task T gets C = max(1, ⌊|T| / images_per_cluster⌋) clusters (paper: 100).
        backend: A backend of `presel.selection.cluster`: auto, numpy, faiss or released; only `released`
            depends on the order of the pool's records.
        seed: Seed of k-means (released code: 12345).
    """

    images_per_cluster: Annotated[int, Field(ge=1)] = 100
    backend: ClusterBackend = "auto"
    seed: Annotated[int, Field(ge=0)] = 12345


@dataclass(frozen=True, kw_only=True)
class ClustersStage(TableStage):
    """Clusters of all images of each task, the reference set included.

    Leaves `clusters.parquet`: id, task, cluster (numbered from 0 in each task); and the centroids of each
    task, `centroids/<number>.npy`, (C, d).

    Attributes:
        features: The images' features; L2-normalized here.
        clustering: Number of clusters and k-means backend.
    """

    name: ClassVar[str] = "clusters"
    version: ClassVar[int] = 4

    features: FeaturesStage
    clustering: Clustering

    @property
    def pool(self) -> Pool:
        """The images in their tasks."""
        return self.features.pool

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Clusters task by task; depends neither on ids nor, unless `released`, on the order of the pool."""
        ids, array = store.load(self.features)
        pool = store.load(self.pool)
        released = self.clustering.backend == "released"
        if not released:
            pool = pool.sort_values("id")
        rows = pd.Series(np.arange(len(ids)), index=ids)
        # groupby sorts by task name.
        tasks = {task: group.to_numpy(dtype=str) for task, group in pool.groupby("task")["id"]}
        names = ids.tolist()
        parts = [
            # A list, so that all rows are checked before the first task is clustered.
            FeatureRows(array, index=rows[members].to_numpy(), normalize=True, ids=names)
            for members in tasks.values()
        ]
        # scikit-learn reproduces the released code's labels only if it controls the threads itself.
        each = map if released else for_each_task
        tables: list[pd.DataFrame] = []
        with progress("clustering tasks", len(tasks)) as advance:
            for (task, members), (labels, centroids) in zip(
                tasks.items(), each(self._cluster, parts), strict=True
            ):
                write_array(folder / "centroids" / f"{len(tables):03}.npy", centroids)
                tables.append(pd.DataFrame({"id": members, "task": task, "cluster": labels}))
                advance(1)
        self.write(folder, pd.concat(tables, ignore_index=True))
        return {"clusters": int(sum(table["cluster"].nunique() for table in tables))}

    def _cluster(self, rows: FeatureRows) -> tuple[IntVector, Float32Matrix]:
        options = self.clustering
        n_clusters = number_of_clusters(len(rows), options.images_per_cluster)
        in_any_order = options.backend != "released"
        return cluster(rows, n_clusters, options.seed, options.backend, canonical_order=in_any_order)


@dataclass(frozen=True, kw_only=True)
class DiscoveredClustersStage(ClustersStage):
    """The same in tasks that were discovered in the same features.

    Attributes:
        tasks: The images in these tasks.
    """

    tasks: DiscoveredTasksStage

    @property
    def pool(self) -> Pool:
        """The images in their discovered tasks."""
        return self.tasks
