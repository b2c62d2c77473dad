"""Stage `clusters`: k-means on the features of each task."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import Seed, component
from presel.errors import PreselError
from presel.selection import ClusterBackend, cluster, number_of_clusters
from presel.selection.arrays import Float32Matrix, IntVector
from presel.selection.feature_rows import Features
from presel.selection.kmeans.search import on_gpus
from presel.selection.threads import for_each_task, many
from presel.stages.cells import DIVISION_VERSION, divide
from presel.stages.feature_groups import FeatureGroups, check_room_for_copy
from presel.stages.features import PoolFeaturesStage
from presel.stages.pool import Pool
from presel.stages.results import TableStage
from presel.stages.tasks import DiscoveredTasksStage
from presel.storage.executor import Sharded
from presel.storage.files import read_arrays, write_array, write_arrays
from presel.storage.shards import Shards
from presel.storage.stage import fields_identity
from presel.storage.store import Store

DIVIDE_ABOVE = 1_000_000

# What is clustered together.
_PLAN = "parts/plan.npz"


@component
class Clustering:
    """How the images of a task are clustered.

    Attributes:
        images_per_cluster: A task T gets C = max(1, ⌊|T| / images_per_cluster⌋) clusters (paper: 100).
        backend: A backend of `presel.selection.cluster`: auto, numpy, faiss or released; only `released`
            depends on the order of the pool's records.
        seed: Seed of k-means (released code: 12345).
        divide_above: A task of more images is divided into cells of similar images, some 80,000 each, which
            are clustered one by one, so that only one for each processor is in memory. For `auto` only.
    """

    images_per_cluster: Annotated[int, Field(ge=1)] = 100
    backend: ClusterBackend = "auto"
    seed: Seed = 12345
    divide_above: Annotated[int, Field(ge=1)] = DIVIDE_ABOVE

    def __post_init__(self) -> None:
        """Checks `divide_above` against the backend."""
        if self.backend != "auto" and self.divide_above != DIVIDE_ABOVE:
            raise ValueError(
                f"divide_above={self.divide_above} has no effect with backend={self.backend}; leave it out, "
                "or set backend=auto"
            )

    def identity(self) -> dict[str, Any]:
        """The fields; `divide_above` only if it is set, so that results from before it keep their keys.

        The version of the division goes with it. By default the sizes of tasks, which no key knows, say
        whether it matters: `ClustersStage.check` compares it.
        """
        fields = fields_identity(self)
        if self.divide_above == DIVIDE_ABOVE:
            del fields["divide_above"]
            return fields
        return {**fields, "division": DIVISION_VERSION}


@dataclass(frozen=True, kw_only=True)
class ClustersStage(TableStage, Sharded):
    """Clusters of all images of each task, the reference set included.

    Leaves `clusters.parquet`: id, task, cluster (numbered from 0 in each task); and the centroids of each
    task, `centroids/<number>.npy`, (C, d).

    Attributes:
        features: The images' features; L2-normalized here.
        clustering: Number of clusters and k-means backend.
    """

    name: ClassVar[str] = "clusters"
    version: ClassVar[int] = 4

    features: PoolFeaturesStage
    clustering: Clustering

    @property
    def pool(self) -> Pool:
        """The images in their tasks."""
        return self.features.pool

    def check(self, store: Store) -> None:
        """Refuses a result in the store whose tasks an earlier version divided otherwise, or not at all."""
        super().check(store)
        if not store.has(self):
            return
        version = store.manifest(self)["measured"].get("division")
        if version != DIVISION_VERSION and self._divides(store.load(self)["task"].value_counts().max()):
            raise PreselError(
                f"{store.folder(self)}: tasks above cluster.divide_above={self.clustering.divide_above} were "
                "clustered by another version of presel, with another result; set paths.store to a new "
                "folder, or cluster.divide_above to another number"
            )

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Clusters task by task; depends neither on ids nor, unless `released`, on the order of the pool."""
        features = store.load(self.features)
        table = store.load(self.pool)[["id", "task"]]
        if not self._released:
            table = table.sort_values("id")
        table = table.sort_values("task", kind="stable", ignore_index=True)
        rows = pd.Index(features.ids).get_indexer(pd.Index(table["id"]))  # (n,)
        ends = np.cumsum(table.groupby("task").size()).tolist()  # (M,)
        tasks = np.split(rows, ends[:-1])
        if not (folder / _PLAN).exists():
            check_room_for_copy(features, folder)
            plan = [part for number, task in enumerate(tasks) for part in self._parts(features, number, task)]
            write_arrays(folder / _PLAN, **_Parts.of(plan)._asdict())
        parts = _Parts(**read_arrays(folder / _PLAN))
        shards = store.executor.compute(self, store, folder)
        labels = np.empty(len(rows), np.int64)  # (n,), by row
        centroids: list[list[Float32Matrix]] = [[] for _ in tasks]
        clusters = 0
        for task, members, file in zip(parts.tasks, parts.members, shards.files, strict=True):
            found = read_arrays(file)
            labels[members] = found["labels"] + sum(map(len, centroids[task]))
            centroids[task].append(found["centroids"])
            clusters += len(np.unique(found["labels"]))
        for number, parts_of_task in enumerate(centroids):
            write_array(folder / "centroids" / f"{number:03}.npy", np.concatenate(parts_of_task))
        table["cluster"] = labels[rows]
        # In pieces, which parquet keeps: the file stays the same, byte by byte, as when tasks had tables.
        of_tasks = [table[start:end] for start, end in pairwise([0, *ends])]
        self.write(folder, pd.concat(of_tasks, ignore_index=True))
        shutil.rmtree(folder / "parts", ignore_errors=True)
        return {"clusters": clusters, "division": DIVISION_VERSION}

    def shards(self, store: Store, folder: Path) -> "_ClusterShards":
        """One shard for each part: a task, or a cell of a large one."""
        parts = _Parts(**read_arrays(folder / _PLAN))
        groups = FeatureGroups(store.load(self.features), parts.members, folder / "parts" / "features.npy")

        def clustered(number: int) -> _Clustered:
            found = self._cluster(groups, number, int(parts.n_clusters[number]))
            # Here too, since threads may be ahead of what is written part by part.
            shards.write(shards.files[number], [found])
            return found

        count = len(parts.tasks)
        # scikit-learn reproduces the released code's labels only if it controls the threads itself.
        each = map if self._released else partial(for_each_task, of=count)
        shards = _ClusterShards(
            folder=folder / "parts",
            items=range(count),
            label="clustering tasks",
            to_batches=lambda shard: [shard],
            compute_batches=lambda batches: iter(each(clustered, [number for (number,) in batches])),
            size=1,
            name=lambda number: f"task {parts.tasks[number]}",
            device_independent=many(count) and self._same_on_other_machines,
        )
        return shards

    @property
    def _released(self) -> bool:
        return self.clustering.backend == "released"

    @property
    def _same_on_other_machines(self) -> bool:
        backend = self.clustering.backend
        return backend != "released" and not on_gpus(backend)

    def _divides(self, images: int) -> bool:
        return self.clustering.backend == "auto" and images > self.clustering.divide_above

    def _parts(self, features: Features, task: int, rows: IntVector) -> list["_Part"]:
        """The cells of a large task; any other is one part."""
        options = self.clustering
        n_clusters = number_of_clusters(len(rows), options.images_per_cluster)
        if not self._divides(len(rows)):
            return [_Part(task, rows, n_clusters)]
        return [_Part(task, *cell) for cell in divide(features, rows, n_clusters, options.seed)]

    def _cluster(self, groups: FeatureGroups, number: int, n_clusters: int) -> "_Clustered":
        options, in_any_order = self.clustering, not self._released
        return cluster(
            groups[number], n_clusters, options.seed, options.backend, canonical_order=in_any_order
        )


class _Part(NamedTuple):
    """Images that are clustered together: a task, or a cell of one."""

    task: int  # its number
    rows: IntVector  # of its images in the features
    n_clusters: int


class _Parts(NamedTuple):
    """All parts, as the processes that cluster them read them."""

    tasks: IntVector  # (parts,), the number of each one's task
    n_clusters: IntVector  # (parts,)
    ends: IntVector  # (parts,), where each one's rows end
    rows: IntVector  # (n,), of the images in the features, part by part

    @classmethod
    def of(cls, parts: Sequence[_Part]) -> "_Parts":
        """The parts."""
        return cls(
            tasks=np.array([part.task for part in parts]),
            n_clusters=np.array([part.n_clusters for part in parts]),
            ends=np.cumsum([len(part.rows) for part in parts]),
            rows=np.concatenate([part.rows for part in parts]),
        )

    @property
    def members(self) -> list[IntVector]:
        """The rows of each part."""
        return np.split(self.rows, self.ends[:-1])


# Labels, (n,), and centroids, (C, d), of a part.
_Clustered: TypeAlias = tuple[IntVector, Float32Matrix]


class _ClusterShards(Shards[int, _Clustered]):
    """Labels and centroids of a part."""

    suffix: ClassVar[str] = ".npz"

    def write(self, file: Path, results: list[_Clustered]) -> None:
        """Writes both, unless the thread that computed them did."""
        ((labels, centroids),) = results
        if not file.exists():
            write_arrays(file, labels=labels, centroids=centroids)


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
