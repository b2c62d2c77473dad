"""Stage `pool`: ids, images and tasks of a source, every image checked, all instructions dropped."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pandas as pd

from presel.console import progress
from presel.data.images import check_images
from presel.data.sources import Source
from presel.errors import PreselError
from presel.files import write_table
from presel.store import Stage, Store


@dataclass(frozen=True)
class PoolStage(Stage[pd.DataFrame]):
    """The usable images of a source.

    Leaves `pool.parquet` (id, image, task, content) and `rejected.parquet` (id, image, task, why). No text of
    any instruction gets past here.

    Attributes:
        source: Where the records come from.
        workers: Processes that decode images.
        what: `pool` or `benchmarks`, for the stage line.
    """

    name: ClassVar[str] = "pool"
    version: ClassVar[int] = 2

    source: Source
    workers: int = field(compare=False)
    what: str = field(default="pool", compare=False)

    @property
    def label(self) -> str:
        """Says whose images these are."""
        return self.what

    @property
    def inputs(self) -> tuple[Stage[object], ...]:
        """What draws the source, if it is drawn here."""
        return self.source.stages

    def compute(self, store: Store, folder: Path) -> dict[str, int]:
        """Reads the records, checks the images."""
        files = self.source.files(store)
        items, text_only = files.listing()
        with progress(f"checking {len(items):,} images", len(items)) as advance:
            images = [item.image for item in items]
            checked = check_images(files.images, images, self.workers, self.source.min_side, advance)
        table = pd.DataFrame(items, columns=["id", "image", "task"])
        table["why"] = pd.Series([one.fault for one in checked], dtype=object)
        table["content"] = pd.Series([one.content for one in checked], dtype=object)
        rejected = table[table["why"].notna()].drop(columns="content")
        pool = table[table["why"].isna()].drop(columns="why").reset_index(drop=True)
        write_table(folder / "rejected.parquet", rejected)
        write_table(folder / "pool.parquet", pool)
        return {
            "images": len(pool),
            "rejected": len(rejected),
            "text_only_left_out": text_only,
            "tasks": pool["task"].nunique(),
            "different_images": pool["content"].nunique(),
        }

    def load(self, folder: Path) -> pd.DataFrame:
        """Table of the usable images: id, image (relative path), task.

        Raises:
            PreselError: If too many images are unusable.
        """
        pool = pd.read_parquet(folder / "pool.parquet", columns=["id", "image", "task"])
        rejected = pd.read_parquet(folder / "rejected.parquet")
        self._check_rejected(rejected, len(pool) + len(rejected), folder)
        return pool

    def contents(self, store: Store) -> pd.Series:
        """A digest of each usable image's file, in the order of the table; copies share theirs."""
        return pd.read_parquet(store.ensure(self) / "pool.parquet", columns=["content"])["content"]

    def image_paths(self, store: Store, images: pd.Series) -> list[Path]:
        """Full paths of images that are named relative to the source's folder."""
        root = self.source.files(store).images
        return [root / image for image in images]

    def _check_rejected(self, rejected: pd.DataFrame, total: int, folder: Path) -> None:
        if len(rejected) > self.source.max_rejected_share * total:
            first = rejected.iloc[0]
            raise PreselError(
                f"{len(rejected)} of {total} images are unusable, more than max_rejected_share="
                f"{self.source.max_rejected_share:g} allows (first: record '{first['id']}', "
                f"{first['image']}: {first['why']}); all are listed in {folder / 'rejected.parquet'}; "
                f"mend them or raise {self.what.replace('benchmarks', 'evaluation')}.max_rejected_share"
            )
