"""Stage `tasks`: tasks for a pool that has none, discovered by clustering its images."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.data.listing import PoolFiles
from presel.errors import PreselError
from presel.selection import FeatureRows
from presel.selection.clustering import cluster
from presel.stages.features import FeaturesStage
from presel.stages.pool import Pool
from presel.storage.files import write_table
from presel.storage.store import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiscoveredTasksStage(Pool):
    """The images of a pool in as many tasks as are asked for, by k-means on their L2-normalized features.

    Leaves `tasks.parquet` (id, image, task). The tasks that the source names have no say.

    Attributes:
        features: Features of the images.
        n_tasks: How many tasks.
        seed: Decides the start of k-means; neither the pool's order nor the ids' names have a say.
    """

    name: ClassVar[str] = "tasks"

    features: FeaturesStage
    n_tasks: int
    seed: int

    @property
    def label(self) -> str:
        """Says that they are not given."""
        return f"{self.name} ({self.n_tasks} discovered)"

    def files(self, store: Store) -> PoolFiles:
        """The source's files."""
        return self.features.pool.files(store)

    def contents(self, store: Store) -> pd.Series:
        """Those of the images, whose order this table keeps."""
        return self.features.pool.contents(store)

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Clusters all images."""
        ids, array = store.load(self.features)
        rows = FeatureRows(array, normalize=True, ids=ids.tolist())
        labels, _ = cluster(rows, self.n_tasks, self.seed, canonical_order=True)
        names = pd.Series(np.array(task_names(self.n_tasks))[labels], index=ids)
        table = store.load(self.features.pool)
        table["task"] = names[table["id"]].to_numpy()
        write_table(folder / "tasks.parquet", table)
        sizes = table["task"].value_counts()
        extent = f"{sizes.min():,} to {sizes.max():,} images"
        _log.info(f"  tasks were discovered by clustering: {len(sizes)} tasks of {extent}")
        return {"images": len(table), "tasks": len(sizes)}

    def load(self, folder: Path) -> pd.DataFrame:
        """Table of the usable images: id, image (relative path), task."""
        return pd.read_parquet(folder / "tasks.parquet")


def task_names(count: int) -> list[str]:
    """Names of discovered tasks, `task_00` and so on, in ascending order."""
    width = max(2, len(str(count - 1)))
    return [f"task_{number:0{width}}" for number in range(count)]


@component
class Tasks:
    """Base of where a pool's tasks come from.

    Attributes:
        from_source: Whether the pool's source must name them.
    """

    from_source: ClassVar[bool]

    def names(self, images: pd.DataFrame) -> list[str]:
        """The names of the tasks of these images, in ascending order.

        Raises:
            PreselError: If there are too few images for them.
        """
        raise NotImplementedError

    def pool(self, features: FeaturesStage) -> Pool:
        """The images that the features are of, each in one task."""
        raise NotImplementedError


@component
class GivenTasks(Tasks):
    """The tasks that the source names."""

    from_source: ClassVar[bool] = True

    def names(self, images: pd.DataFrame) -> list[str]:
        """Those of the images."""
        return sorted(images["task"].unique())

    def pool(self, features: FeaturesStage) -> Pool:
        """The images as they are; the features are not computed for this."""
        return features.pool


@component
class DiscoveredTasks(Tasks):
    """Tasks that are found by clustering.

    Attributes:
        n_tasks: How many.
        seed: Decides the start of k-means.
    """

    from_source: ClassVar[bool] = False

    n_tasks: Annotated[int, Field(ge=1)] = 10
    seed: Annotated[int, Field(ge=0)] = 0

    def names(self, images: pd.DataFrame) -> list[str]:
        """Numbered names, known before the tasks are."""
        if self.n_tasks > len(images):
            raise PreselError(
                f"tasks.n_tasks={self.n_tasks} is above the pool's {len(images)} images; lower it"
            )
        return task_names(self.n_tasks)

    def pool(self, features: FeaturesStage) -> Pool:
        """The images in discovered tasks."""
        return DiscoveredTasksStage(features, self.n_tasks, self.seed)
