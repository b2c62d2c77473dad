"""Stage `tasks`: tasks of a pool without task names, discovered by clustering its images."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import Seed, component
from presel.errors import PreselError
from presel.selection import FeatureRows
from presel.selection.clustering import cluster
from presel.stages.features import PoolFeaturesStage
from presel.stages.pool import Pool, PoolStage
from presel.storage.store import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DiscoveredTasksStage(Pool):
    """The images of a pool in `n_tasks` tasks, by k-means on their L2-normalized features.

    Leaves `tasks.parquet` (id, image, task). Tasks that the source names are ignored.

    Attributes:
        features: Features of the images.
        n_tasks: Number of tasks.
        seed: Seed of the initialization of k-means; the result is invariant to row order and ids.
    """

    name: ClassVar[str] = "tasks"

    features: PoolFeaturesStage
    n_tasks: int
    seed: int

    @property
    def label(self) -> str:
        """Says that the tasks are discovered."""
        return f"{self.name} ({self.n_tasks} discovered)"

    @property
    def images(self) -> PoolStage:
        """The images, without these tasks."""
        return self.features.pool

    def task_names(self, store: Store) -> list[str]:
        """Numbered names."""
        return numbered_tasks(self.n_tasks)

    def check_data(self, store: Store) -> None:
        """Checks that there are enough images.

        Raises:
            PreselError: If not.
        """
        images = self.size(store)
        if self.n_tasks > images:
            raise PreselError(f"tasks.n_tasks={self.n_tasks} is above the pool's {images} images; lower it")

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Clusters all images."""
        ids, array = store.load(self.features)
        rows = FeatureRows(array, normalize=True, ids=ids.tolist())
        labels, _ = cluster(rows, self.n_tasks, self.seed, canonical_order=True)
        names = pd.Series(np.array(numbered_tasks(self.n_tasks))[labels], index=ids)
        table = store.load(self.images)
        table["task"] = names[table["id"]].to_numpy()
        self.write(folder, table)
        sizes = table["task"].value_counts()
        extent = f"{sizes.min():,} to {sizes.max():,} images"
        _log.info(f"  tasks were discovered by clustering: {len(sizes)} tasks of {extent}")
        return {"images": len(table), "tasks": len(sizes)}


def numbered_tasks(count: int) -> list[str]:
    """Names of discovered tasks, `task_00` and so on, sorted."""
    width = max(2, len(str(count - 1)))
    return [f"task_{number:0{width}}" for number in range(count)]


@component
class Tasks:
    """Base class: where a pool's tasks come from.

    Attributes:
        from_source: Whether the pool's source must name each image's task.
    """

    from_source: ClassVar[bool]

    def pool(self, features: PoolFeaturesStage) -> Pool:
        """The images that the features are of, each in one task."""
        raise NotImplementedError


@component
class GivenTasks(Tasks):
    """The tasks that the source names."""

    from_source: ClassVar[bool] = True

    def pool(self, features: PoolFeaturesStage) -> Pool:
        """The images as they are; the features need not be computed."""
        return features.pool


@component
class DiscoveredTasks(Tasks):
    """Tasks that are discovered by clustering.

    Attributes:
        n_tasks: Number of tasks.
        seed: Seed of the initialization of k-means.
    """

    from_source: ClassVar[bool] = False

    n_tasks: Annotated[int, Field(ge=1)] = 10
    seed: Seed = 0

    def pool(self, features: PoolFeaturesStage) -> Pool:
        """The images in discovered tasks."""
        return DiscoveredTasksStage(features=features, n_tasks=self.n_tasks, seed=self.seed)
