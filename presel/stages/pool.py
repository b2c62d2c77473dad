"""Stage `pool`: ids, images and tasks of a source, every image checked, all instructions dropped."""

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
from presel.storage.files import write_table
from presel.storage.stage import Stage
from presel.storage.store import Store

_log = logging.getLogger(__name__)


class Pool(Stage[pd.DataFrame]):
    """Base of the stages whose result is a table of usable images: id, image (relative path), task."""

    @abstractmethod
    def files(self, store: Store) -> PoolFiles:
        """The files behind the images."""

    @abstractmethod
    def contents(self, store: Store) -> pd.Series:
        """A digest of each image's file, in the order of the table; copies share theirs."""

    def image_paths(self, store: Store, images: pd.Series) -> list[Path]:
        """Full paths of images that are named relative to the source's folder."""
        root = self.files(store).images
        return [root / image for image in images]


@dataclass(frozen=True)
class PoolStage(Pool):
    """The usable images of a source.

    Leaves `pool.parquet` (id, image, task, content) and `rejected.parquet` (id, image, task, why). No text of
    any instruction gets past here.

    Attributes:
        source: Where the records come from.
        workers: Processes that decode images.
        what: `pool` or `benchmarks`, for the stage line.
        with_tasks: Whether every image must have a task.
    """

    name: ClassVar[str] = "pool"
    version: ClassVar[int] = 3

    source: Source
    workers: int = field(compare=False)
    what: str = field(default="pool", compare=False)
    with_tasks: bool = field(default=True, compare=False)

    @property
    def label(self) -> str:
        """Says whose images these are."""
        return self.what

    @property
    def inputs(self) -> tuple[Stage[object], ...]:
        """What draws the source, if it is drawn here."""
        return self.source.stages

    def files(self, store: Store) -> PoolFiles:
        """The source's files."""
        return self.source.files(store)

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Reads the records, checks the images.

        Raises:
            PreselError: If an image has no task.
        """
        files = self.files(store)
        listing = files.listing()
        items = listing.items
        table = pd.DataFrame(items, columns=["id", "image", "task"])
        self._check_tasks(table)
        if listing.text_only:
            _log.info(f"  records left out, since they have no image: {listing.text_only:,}")
        if listing.other_files:
            left_out = listing.told_other_files()
            _log.info(f"  files left out, since they are no images: {left_out}")
        with progress(f"checking {len(items):,} images", len(items)) as advance:
            images = [item.image for item in items]
            checked = check_images(files.images, images, self.workers, self.source.min_side, advance)
        table["why"] = pd.Series([one.fault for one in checked], dtype=object)
        table["content"] = pd.Series([one.content for one in checked], dtype=object)
        rejected = table[table["why"].notna()].drop(columns="content")
        pool = table[table["why"].isna()].drop(columns="why").reset_index(drop=True)
        write_table(folder / "rejected.parquet", rejected)
        write_table(folder / "pool.parquet", pool)
        return {
            "images": len(pool),
            "rejected": len(rejected),
            "text_only_left_out": listing.text_only,
            "files_left_out": dict(listing.other_files),
            "tasks": pool["task"].nunique(),
            "different_images": pool["content"].nunique(),
        }

    def load(self, folder: Path) -> pd.DataFrame:
        """Table of the usable images: id, image (relative path), task.

        Raises:
            PreselError: If too many images are unusable, or one has no task.
        """
        pool = pd.read_parquet(folder / "pool.parquet", columns=["id", "image", "task"])
        rejected = pd.read_parquet(folder / "rejected.parquet")
        self._check_rejected(rejected, len(pool) + len(rejected), folder)
        self._check_tasks(pool)
        return pool

    def contents(self, store: Store) -> pd.Series:
        """Read from the same file as the table."""
        return pd.read_parquet(store.verified(self) / "pool.parquet", columns=["content"])["content"]

    def _check_tasks(self, table: pd.DataFrame) -> None:
        without = table[table["task"].isna()]
        if self.with_tasks and len(without):
            raise PreselError(
                f"{len(without)} of {len(table)} images have no task (first: '{without['image'].iloc[0]}'); "
                "name one for them by pool.task=NAME, or have tasks found among all by tasks=discovered"
            )

    def _check_rejected(self, rejected: pd.DataFrame, total: int, folder: Path) -> None:
        if len(rejected) > self.source.max_rejected_share * total:
            first = rejected.iloc[0]
            raise PreselError(
                f"{len(rejected)} of {total} images are unusable, more than max_rejected_share="
                f"{self.source.max_rejected_share:g} allows (first: record '{first['id']}', "
                f"{first['image']}: {first['why']}); all are listed in {folder / 'rejected.parquet'}; "
                f"mend them or raise {self.source.group}.max_rejected_share"
            )
