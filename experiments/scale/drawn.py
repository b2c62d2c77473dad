"""Stages whose results are drawn, as images and models would leave them: pool, features, relevance.

They derive from the stages that they stand for, so that clusters, centrality and selection are the product's.
"""

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from presel.distributed.runtime import Runtime
from presel.stages.features import FeaturesStage
from presel.stages.pool import Pool, PoolStage
from presel.stages.reference import ReferenceStage
from presel.stages.results import TableStage
from presel.storage.files import atomic, write_array, write_table
from presel.storage.shards import chunks
from presel.storage.store import Store

# Rows of a shard, 50 MB in float16 at 768 dimensions, and rows that are drawn at once, in the CPU's cache.
_SHARD = 32_768
_AT_ONCE = 1024
# Topics, and as many variants, whose sums are the centers of groups, so that many centers take little memory.
_TOPICS = 4096
# Groups per cluster to be made: clusters do not simply find the groups again.
_GROUPS_PER_CLUSTER = 1.5
_DIRECTIONS = 32


@dataclass(frozen=True, kw_only=True)
class DrawnPool(PoolStage):
    """A pool without images: tasks of unequal size, mixed in the file as they are in LLaVA-665K."""

    source: None = None
    workers: int = field(default=0, compare=False)
    n_images: int
    n_tasks: int
    seed: int = 0

    inputs: ClassVar[tuple[()]] = ()

    def settings(self) -> dict[str, Any]:
        """The fields; there is no source whose near-duplicates could be left out."""
        return super(PoolStage, self).settings()

    def check_data(self, store: Store) -> None:
        """There are no images that could be unusable."""

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Draws the task of every image."""
        rng = np.random.default_rng([self.seed, 0])
        shares = 0.2 / self.n_tasks + 0.8 * rng.dirichlet(np.full(self.n_tasks, 2.0))
        task = rng.choice(self.n_tasks, self.n_images, p=shares / shares.sum())
        # Ids in another order than the file, as digests or names of files are.
        ids = pd.Series(rng.permutation(self.n_images)).map("{:08}".format)
        names = np.array([f"task_{number:03}" for number in range(self.n_tasks)])
        self.write(folder, pd.DataFrame({"id": ids, "image": ids, "task": names[task]}))
        return {"images": self.n_images}


@dataclass(frozen=True, kw_only=True)
class MergedTasks(Pool):
    """The same images in fewer tasks, each of them several of the pool's; the first is the largest by far."""

    name: ClassVar[str] = "tasks"

    pool: DrawnPool
    n_tasks: int

    @property
    def images(self) -> PoolStage:
        """The drawn pool."""
        return self.pool

    def task_names(self, store: Store) -> list[str]:
        """Numbered names."""
        return [f"merged_{number:03}" for number in range(self.n_tasks)]

    def compute(self, store: Store, folder: Path) -> None:
        """Merges tasks."""
        table = store.load(self.pool)
        number, names = pd.factorize(table["task"], sort=True)  # (n,), (M,)
        merged = (self.n_tasks * (np.arange(len(names)) / len(names)) ** 2).astype(np.int64)  # (M,)
        self.write(folder, table.assign(task=np.array(self.task_names(store))[merged[number]]))


@dataclass(frozen=True, kw_only=True)
class DrawnFeatures(FeaturesStage):
    """Features of a drawn pool, float16: groups of unequal size in every task, written in shards."""

    encoder: None = None
    runtime: Runtime = field(default_factory=Runtime, compare=False)
    dimension: int = 768
    seed: int = 0

    def check(self, store: Store) -> None:
        """No model can be missing."""

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Draws the missing shards, and joins all of them."""
        pool = store.load(self.pool)
        task = pd.factorize(pool["task"], sort=True)[0]  # (n,)
        groups = Groups(np.bincount(task), self.dimension, self.seed)
        parts = [slice(start, start + _SHARD) for start in range(0, len(task), _SHARD)]
        files = [folder / "shards" / f"part-{number:05}.npy" for number in range(len(parts))]

        def draw(number: int) -> None:
            if not files[number].exists():
                rng = np.random.default_rng([self.seed, 1, number])
                drawn = [groups.draw(few, rng) for few in chunks(task[parts[number]], _AT_ONCE)]
                write_array(files[number], np.concatenate(drawn))

        if not (folder / "features.npy").exists():
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(draw, range(len(files))))
            self._join(files, len(task), folder / "features.npy")
        shutil.rmtree(folder / "shards", ignore_errors=True)
        write_table(folder / "ids.parquet", pool[["id"]])
        return {"images": len(task), "dimensions": self.dimension}

    def _join(self, files: list[Path], n_images: int, joined: Path) -> None:
        header = {"descr": "<f2", "fortran_order": False, "shape": (n_images, self.dimension)}
        with atomic(joined) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for shard in files:
                file.write(np.load(shard).data)


class Groups:
    """Groups of similar images in every task, of unequal size.

    A group varies in 32 directions of the whole pool and a little in all, as image features do. The center
    of a group is the sum of a topic and a variant, both from tables of fixed size.
    """

    def __init__(self, task_sizes: npt.NDArray[np.int64], dimension: int, seed: int) -> None:
        """Draws topics, variants and the sizes of the groups; `task_sizes` has shape (M,)."""
        rng = np.random.default_rng([seed, 2])
        normal = partial(rng.standard_normal, dtype=np.float32)
        self._topics = normal((_TOPICS, dimension)) * np.float32(math.sqrt(0.6 / dimension))
        self._variants = normal((_TOPICS, dimension)) * np.float32(math.sqrt(0.4 / dimension))
        self._common = normal((_DIRECTIONS, dimension)) * np.float32(1.2 / math.sqrt(_DIRECTIONS * dimension))
        counts = np.maximum(3, task_sizes * _GROUPS_PER_CLUSTER / 100).astype(np.int64)  # (M,)
        self._first = np.cumsum(counts) - counts  # (M,)
        self._cumulative = [np.cumsum(rng.dirichlet(np.full(count, 0.7))) for count in counts]
        self._topic, self._variant = rng.integers(_TOPICS, size=(2, counts.sum()))  # (groups,) each

    def draw(self, tasks: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.float16]:
        """Draws one vector of norm 1 for each image, given its task, (n,): (n, d)."""
        place = rng.random(len(tasks))
        group = np.empty(len(tasks), np.int64)
        for task in np.unique(tasks):
            own = tasks == task
            cumulative = self._cumulative[task]
            found = np.minimum(np.searchsorted(cumulative, place[own]), len(cumulative) - 1)
            group[own] = self._first[task] + found
        vectors = self._topics[self._topic[group]] + self._variants[self._variant[group]]
        vectors += rng.standard_normal((len(tasks), _DIRECTIONS), dtype=np.float32) @ self._common
        noise = rng.standard_normal(vectors.shape, dtype=np.float32)
        vectors += noise * np.float32(0.42 / math.sqrt(vectors.shape[1]))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float16)


@dataclass(frozen=True, kw_only=True)
class DrawnRelevance(TableStage):
    """Losses of the reference samples; each task has an IRS of its own."""

    name: ClassVar[str] = "relevance"

    pool: Pool
    reference: ReferenceStage
    seed: int = 0

    def compute(self, store: Store, folder: Path) -> None:
        """Draws the losses."""
        rng = np.random.default_rng([self.seed, 3])
        table = store.load(self.reference).merge(store.load(self.pool)[["id", "task"]], on="id")
        task = pd.factorize(table["task"], sort=True)[0]  # (n,)
        without = rng.uniform(1, 3, len(table))
        relevance = rng.uniform(0.5, 0.9, task.max() + 1)[task] * rng.uniform(0.8, 1.2, len(table))
        losses = {"loss_with_question": without * relevance, "loss_without_question": without}
        self.write(folder, table[["id"]].assign(**losses))
