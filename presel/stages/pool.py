"""Stage `pool`: ids, images and tasks of a source; every image is checked, instructions are dropped."""

import logging
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from presel.console import progress
from presel.data.images import check_images
from presel.data.listing import PoolFiles
from presel.data.sources import Source
from presel.errors import PreselError
from presel.stages.results import TableStage
from presel.storage.files import write_table
from presel.storage.stage import Stage
from presel.storage.store import Store

_log = logging.getLogger(__name__)


class Pool(TableStage):
    """Base of the stages whose result is a table of usable images: id, image (relative path), task."""

    @property
    @abstractmethod
    def images(self) -> "PoolStage":
        """The stage that checked the images, whose order this table keeps."""

    @abstractmethod
    def task_names(self, store: Store) -> list[str]:
        """The names of the tasks, sorted; known before a long computation."""

    def files(self, store: Store) -> PoolFiles:
        """The source's files."""
        return self.images.source.files(store)

    def size(self, store: Store) -> int:
        """Number of images; known before a long computation."""
        return len(store.load(self.images))

    def contents(self, store: Store) -> pd.Series:
        """A digest of each image's file, in the order of the table; copies have the same digest."""
        return pd.read_parquet(store.verified(self.images) / "pool.parquet", columns=["content"])["content"]

    def image_paths(self, store: Store, images: pd.Series) -> list[Path]:
        """Full paths of images that are named relative to the source's folder."""
        root = self.files(store).images
        return [root / image for image in images]


@dataclass(frozen=True, kw_only=True)
class PoolStage(Pool):
    """The usable images of a source.

    Leaves `pool.parquet` (id, image, task, content) and `rejected.parquet` (id, image, task, why). No
    instruction's text passes this stage.

    Attributes:
        source: Where the records come from.
        workers: Worker processes that decode images.
        title: `pool` or `benchmarks`, for the label.
        with_tasks: Whether every image must have a task.
    """

    name: ClassVar[str] = "pool"
    version: ClassVar[int] = 3

    source: Source
    workers: int = field(compare=False)
    title: str = field(default="pool", compare=False)
    with_tasks: bool = field(default=True, compare=False)

    @property
    def label(self) -> str:
        """The title."""
        return self.title

    @property
    def inputs(self) -> tuple[Stage[object], ...]:
        """The stages that make the source's files, if they are made here."""
        return self.source.stages

    @property
    def images(self) -> "PoolStage":
        """This stage itself."""
        return self

    def task_names(self, store: Store) -> list[str]:
        """Those that the source names."""
        return sorted(store.load(self)["task"].unique())

    def check_data(self, store: Store) -> None:
        """Checks that few enough images are unusable, and that each has a task.

        Raises:
            PreselError: If not.
        """
        pool = store.load(self)
        self._check_tasks(pool)
        listed = store.folder(self) / "rejected.parquet"
        rejected = pd.read_parquet(listed)
        total = len(pool) + len(rejected)
        if len(rejected) > self.source.max_rejected_share * total:
            first = rejected.iloc[0]
            raise PreselError(
                f"{len(rejected)} of {total} images are unusable, more than max_rejected_share="
                f"{self.source.max_rejected_share:g} allows (first: record '{first['id']}', "
                f"{first['image']}: {first['why']}); all are listed in {listed}; "
                f"replace them or raise {self.source.group}.max_rejected_share"
            )

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Lists the records and checks the images.

        Raises:
            PreselError: If an image has no task.
        """
        files = self.files(store)
        listing = files.listing()
        listed = len(listing.items)
        listing = self.source.sample(listing)
        table = pd.DataFrame(listing.items, columns=["id", "image", "task"])
        self._check_tasks(table)
        if listing.text_only:
            _log.info(f"  records left out, since they have no image: {listing.text_only:,}")
        if listing.other_files:
            _log.info(f"  files left out, since they are no images: {listing.describe_skipped()}")
        if len(listing.items) < listed:
            _log.info(f"  a random sample of {len(listing.items):,} of {listed:,} images")
        images = table["image"].tolist()
        with progress(f"checking {len(images):,} images", len(images)) as advance:
            checked = check_images(files.images, images, self.workers, self.source.min_side, advance)
        table["why"] = pd.Series([one.fault for one in checked], dtype=object)
        table["content"] = pd.Series([one.content for one in checked], dtype=object)
        rejected = table[table["why"].notna()].drop(columns="content")
        pool = table[table["why"].isna()].drop(columns="why").reset_index(drop=True)
        write_table(folder / "rejected.parquet", rejected)
        self.write(folder, pool)
        return {
            "images": len(pool),
            "rejected": len(rejected),
            "text_only_left_out": listing.text_only,
            "files_left_out": dict(listing.other_files),
            "tasks": pool["task"].nunique(),
            "different_images": pool["content"].nunique(),
        }

    def load(self, folder: Path) -> pd.DataFrame:
        """Table of the usable images: id, image (relative path), task."""
        return pd.read_parquet(folder / "pool.parquet", columns=["id", "image", "task"])

    def _check_tasks(self, table: pd.DataFrame) -> None:
        without = table[table["task"].isna()]
        if self.with_tasks and len(without):
            raise PreselError(
                f"{len(without)} of {len(table)} images have no task (first: '{without['image'].iloc[0]}'); "
                "name one for them by pool.task=NAME, or have tasks found among all by tasks=discovered"
            )
