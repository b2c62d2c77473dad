"""Stage `clusters`: k-means on the features of each task."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.console import progress
from presel.selection import ClusterBackend, cluster, number_of_clusters
from presel.selection.arrays import Float32Matrix, IntVector
from presel.selection.feature_rows import Features
from presel.selection.threads import for_each_task
from presel.stages.cells import divide
from presel.stages.feature_groups import FeatureGroups
from presel.stages.features import FeaturesStage
from presel.stages.pool import Pool
from presel.stages.results import TableStage
from presel.stages.tasks import DiscoveredTasksStage
from presel.storage.files import checked, write_array
from presel.storage.stage import fields_identity
from presel.storage.store import Store

DIVIDE_ABOVE = 1_000_000


@component
class Clustering:
    """How the images of a task are clustered.

    Attributes:
        images_per_cluster: A task T gets C = max(1, ⌊|T| / images_per_cluster⌋) clusters (paper: 100).
        backend: A backend of `presel.selection.cluster`: auto, numpy, faiss or released; only `released`
            depends on the order of the pool's records.
        seed: Seed of k-means (released code: 12345).
        divide_above: A task of more images is divided into cells of similar images, some 200,000 each, which
            are clustered one by one, so that only one for each processor is in memory. For `auto` only.
    """

    images_per_cluster: Annotated[int, Field(ge=1)] = 100
    backend: ClusterBackend = "auto"
    seed: Annotated[int, Field(ge=0)] = 12345
    divide_above: Annotated[int, Field(ge=1)] = DIVIDE_ABOVE

    def identity(self) -> dict[str, Any]:
        """The fields; `divide_above` only if it is set, so that results from before it keep their keys."""
        fields = fields_identity(self)
        if self.divide_above == DIVIDE_ABOVE:
            del fields["divide_above"]
        return fields


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
        features = store.load(self.features)
        table = store.load(self.pool)[["id", "task"]]
        released = self.clustering.backend == "released"
        if not released:
            table = table.sort_values("id")
        table = table.sort_values("task", kind="stable", ignore_index=True)
        rows = pd.Index(features.ids).get_indexer(pd.Index(table["id"]))  # (n,)
        ends = np.cumsum(table.groupby("task").size()).tolist()  # (M,)
        tasks = np.split(rows, ends[:-1])
        parts = [part for number, task in enumerate(tasks) for part in self._parts(features, number, task)]
        groups = FeatureGroups(features, [part.rows for part in parts], folder / "parts" / "features.npy")

        def clustered(number: int) -> tuple[IntVector, Float32Matrix]:
            compute = partial(self._cluster, groups, number, parts[number].n_clusters)
            return compute() if groups.in_place else _kept(folder / "parts" / f"{number:05}", compute)

        # scikit-learn reproduces the released code's labels only if it controls the threads itself.
        each = map if released else for_each_task
        labels = np.empty(len(rows), np.int64)  # (n,), by row
        centroids: list[list[Float32Matrix]] = [[] for _ in tasks]
        clusters = 0
        with progress("clustering tasks", len(parts)) as advance:
            for part, (found, centers) in zip(parts, each(clustered, range(len(parts))), strict=True):
                labels[part.rows] = found + sum(map(len, centroids[part.task]))
                centroids[part.task].append(centers)
                clusters += len(np.unique(found))
                advance(1)
        for number, parts_of_task in enumerate(centroids):
            write_array(folder / "centroids" / f"{number:03}.npy", np.concatenate(parts_of_task))
        table["cluster"] = labels[rows]
        # In pieces, which parquet keeps: the file stays the same, byte by byte, as when tasks had tables.
        of_tasks = [table[start:end] for start, end in pairwise([0, *ends])]
        self.write(folder, pd.concat(of_tasks, ignore_index=True))
        shutil.rmtree(folder / "parts", ignore_errors=True)
        return {"clusters": clusters}

    def _parts(self, features: Features, task: int, rows: IntVector) -> list["_Part"]:
        """The cells of a large task; any other is one part."""
        options = self.clustering
        n_clusters = number_of_clusters(len(rows), options.images_per_cluster)
        if options.backend != "auto" or len(rows) <= options.divide_above:
            return [_Part(task, rows, n_clusters)]
        return [_Part(task, *cell) for cell in divide(features, rows, n_clusters, options.seed)]

    def _cluster(
        self, groups: FeatureGroups, number: int, n_clusters: int
    ) -> tuple[IntVector, Float32Matrix]:
        options = self.clustering
        in_any_order = options.backend != "released"
        return cluster(
            groups[number], n_clusters, options.seed, options.backend, canonical_order=in_any_order
        )


class _Part(NamedTuple):
    """Images that are clustered together: a task, or a cell of one."""

    task: int  # its number
    rows: IntVector  # of its images in the features
    n_clusters: int


def _kept(
    name: Path, compute: Callable[[], tuple[IntVector, Float32Matrix]]
) -> tuple[IntVector, Float32Matrix]:
    """Labels and centroids of a part, computed unless a run that was interrupted left them."""
    labels, centroids = (name.with_name(f"{name.name}-{what}.npy") for what in ("labels", "centroids"))
    if not labels.exists():
        found = compute()
        write_array(centroids, found[1], with_digest=True)
        write_array(labels, found[0], with_digest=True)
    return np.load(checked(labels)), np.load(checked(centroids))


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
