"""Stage `pool`: ids, images and tasks of a source; every image is checked, instructions are dropped."""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from presel.data.exclusion import line_for
from presel.data.image_checks import Checked, check_image, for_each_image
from presel.data.images import UNOPENED
from presel.data.listing import Item, PoolFiles
from presel.data.near_duplicates import groups_of_thumbnails
from presel.data.sources import Source
from presel.errors import PreselError
from presel.models.lvlm import Lvlm
from presel.stages.left_out import checked_near_duplicates, write_left_out
from presel.stages.results import TableStage
from presel.storage.files import atomic, read_table, write_table
from presel.storage.stage import Stage
from presel.storage.store import Store

_log = logging.getLogger(__name__)


# Refused images that a message names.
_NAMED = 5
# Where `PoolStage` leaves what its table has no room for.
_SEVERAL = "several_images.parquet"
_TEXT_ONLY = "text_only.parquet"


class Pool(TableStage):
    """Base of the stages whose result is a table of usable records: id, image (relative path), task.

    A record is one image in most pools. Of one with several, `image` is the first.
    """

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
        """A digest of each record's image files, in the order of the table; copies have the same digest."""
        return pd.read_parquet(store.verified(self.images) / "pool.parquet", columns=["content"])["content"]

    def all_images(self, store: Store) -> pd.DataFrame:
        """Every image of every record, see `image_list`."""
        return image_list(store.verified(self.images))

    def image_paths(self, store: Store, images: pd.Series) -> list[Path]:
        """Full paths of images that are named relative to the source's folder."""
        root = self.files(store).images
        return [root / image for image in images]


@dataclass(frozen=True, kw_only=True)
class PoolStage(Pool):
    """The usable images of a source.

    Leaves `pool.parquet` (id, image, task, content) and `rejected.parquet` (id, image, task, why; of several
    images, the first that is unusable). If there are records with several images, `several_images.parquet`
    lists these: record (row of the pool), image, content. If the source keeps records without an image,
    `text_only.parquet` has their ids. If it excludes records or leaves out near-duplicates,
    `left_out.parquet` lists them: id, image, task, why. No instruction's text passes this stage.

    Attributes:
        source: Where the records come from.
        workers: Worker processes that decode images.
        title: `pool`, `benchmarks` or `validation`, for the label.
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

    def settings(self) -> dict[str, Any]:
        """The fields, and within what near-duplicates are left out, if they are."""
        if self.source.near_duplicates == "keep":
            return super().settings()
        return super().settings() | {"near_duplicates_within": "task" if self.with_tasks else "pool"}

    def left_out(self, store: Store) -> dict[str, int]:
        """Number of records that settings of the source leave out, by setting."""
        measured = store.manifest(self)["measured"]
        # Results of earlier versions, whose keys are the same, hold neither.
        return {name: measured[name] for name in ("exclude", "near_duplicates") if measured.get(name)}

    def text_only_ids(self, store: Store) -> list[str]:
        """The records without an image that are trained on beside the selection."""
        return list(pd.read_parquet(store.verified(self) / _TEXT_ONLY)["id"])

    def task_names(self, store: Store) -> list[str]:
        """Those that the source names."""
        return sorted(store.load(self)["task"].unique())

    def check_data(self, store: Store) -> None:
        """Checks that few enough images are unusable, and that each has a task.

        Raises:
            PreselError: If not, or if an image can be opened that could not when it was checked.
        """
        pool = store.load(self)
        self._check_tasks(pool)
        listed = store.folder(self) / "rejected.parquet"
        rejected = pd.read_parquet(listed)
        total = len(pool) + len(rejected)
        if again := readable_again(rejected, self.files(store).images):
            raise PreselError(
                f"{self.title}: {len(again)} images that could not be opened when they were checked can be "
                f"now (first: {again[0]}); delete {store.folder(self)} and run the same command again, "
                "which checks them"
            )
        if len(rejected) > self.source.max_rejected_share * total:
            first = rejected.iloc[0]
            raise PreselError(
                f"{len(rejected)} of {total} images are unusable, more than max_rejected_share="
                f"{self.source.max_rejected_share:g} allows (first: record '{first['id']}', "
                f"{first['image']}: {first['why']}); all are listed in {listed}; "
                f"replace them or raise {self.source.group}.max_rejected_share"
            )
        if len(rejected):
            _log.warning(
                f"{self.title}: {len(rejected):,} of {total:,} images are unusable and left out; {listed} "
                "says why"
            )

    def check_images(self, store: Store, lvlm: Lvlm) -> None:
        """Checks that a vision-language model takes the size of every image.

        Raises:
            PreselError: If not; it names the first few, and a file of all, which `exclude` can read.
        """
        from presel.models.image_preparation import refused_images

        images = self.all_images(store)
        refused = refused_images(lvlm, self.files(store).images, images["image"].tolist(), self.workers)
        if not refused:
            return
        rows = images[images["image"].isin(refused)]
        ids = store.load(self)["id"].iloc[rows["record"]]
        first = zip(ids[:_NAMED], rows["image"][:_NAMED], strict=True)
        named = "; ".join(f"record '{name}', {image}: {refused[image]}" for name, image in first)
        file = store.root / "refused" / f"{self.key}.txt"
        file.parent.mkdir(exist_ok=True)
        with atomic(file) as temporary:
            temporary.write_text("\n".join(map(line_for, dict.fromkeys(ids))) + "\n", encoding="utf-8")
        remedy = f"{self.source.group}.exclude={file}"
        if self.source.exclude is not None:
            remedy = f"add the lines of {file} to {self.source.exclude}"
        raise PreselError(
            f"{self.title}: the processor of {lvlm.path} does not take {len(refused)} of "
            f"{images['image'].nunique()} images ({named}{'; …' if len(rows) > _NAMED else ''}); resize "
            f"them or leave their records out ({remedy})"
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
        listed -= len(listing.excluded)
        table = pd.DataFrame([item[:3] for item in listing.items], columns=["id", "image", "task"])
        self._check_tasks(table)
        if listing.text_only:
            why = (
                "their text shows an image that they lack"
                if self.source.keeps_text_only
                else "they have no image"
            )
            _log.info(f"  records left out, since {why}: {listing.text_only:,}")
        if listing.kept:
            _log.info(f"  records without an image, kept for training: {len(listing.kept):,}")
        if listing.other_files:
            _log.info(f"  files left out, of kinds that are not read: {listing.describe_skipped()}")
        if len(listing.items) < listed:
            _log.info(f"  a random sample of {len(listing.items):,} of {listed:,} images")
        images = [image for item in listing.items for image in item.images]
        thumbnails = self.source.near_duplicates != "keep"
        check = partial(check_image, min_side=self.source.min_side, with_thumbnail=thumbnails)
        checked = for_each_image(store, folder, files.images, images, check, Checked, self.workers)
        shown = _shown(table, listing.items, checked)
        usable = shown[~shown["id"].isin(shown.loc[shown["why"].notna(), "id"])]
        if thumbnails:
            usable = usable.assign(group=groups_of_thumbnails(list(usable["thumbnail"])))  # (n,)
        alike = checked_near_duplicates(usable, self.source, self.with_tasks)
        pool, several, rejected = _split_records(table, shown, alike)
        write_table(folder / "rejected.parquet", rejected)
        write_left_out(folder, self.source, listing, table.drop(rejected.index), alike)
        self.write(folder, pool)
        if len(several):
            write_table(folder / _SEVERAL, several)
        if self.source.keeps_text_only:
            write_table(folder / _TEXT_ONLY, pd.DataFrame({"id": listing.kept}, dtype=object))
        return {
            "images": len(pool),
            "rejected": len(rejected),
            "exclude": len(listing.excluded),
            "near_duplicates": len(alike),
            "text_only_left_out": listing.text_only,
            "text_only_kept": len(listing.kept),
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


def readable_again(rejected: pd.DataFrame, root: Path) -> list[str]:
    """Images below `root` that could not be opened when they were checked, and can be now.

    Names, sizes and dates, by which a pool's result is stored, do not tell.
    """
    images = rejected.loc[rejected["why"].str.startswith(UNOPENED), "image"]
    found = []
    for image in images:
        with suppress(OSError), (root / image).open("rb") as file:
            file.read(1)
            found.append(image)
    return found


def image_list(folder: Path) -> pd.DataFrame:
    """Every image of every record of a `PoolStage`'s result, in the order of both.

    Args:
        folder: The result's folder.

    Returns:
        Table of record (row of the pool), image (relative path) and content (digest of the file).
    """
    pool = read_table(folder / "pool.parquet", "image", "content")
    single = pool[["image", "content"]].rename_axis("record").reset_index()
    if not (folder / _SEVERAL).exists():
        return single
    several = read_table(folder / _SEVERAL, "record", "image", "content")
    others = single[~single["record"].isin(several["record"])]
    return pd.concat([others, several]).sort_values("record", kind="stable", ignore_index=True)


def _shown(table: pd.DataFrame, items: Sequence[Item], checked: Sequence[Checked]) -> pd.DataFrame:
    """A row for each image: record (row of the table), id, image, task, and what the check found."""
    shown = pd.DataFrame(checked, columns=Checked._fields, dtype=object).rename(columns={"fault": "why"})
    records = np.repeat(table.index, [len(item.images) for item in items])
    of_record = table.loc[records, ["id", "task"]].rename_axis("record").reset_index()
    return of_record.assign(image=[image for item in items for image in item.images]).join(shown)


def _split_records(
    table: pd.DataFrame, shown: pd.DataFrame, alike: pd.Series
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The three tables of `PoolStage`: usable records, the images of those with several, rejected records.

    Records in the index of `alike` are left out.
    """
    shown = shown[["record", "image", "why", "content"]]
    broken = shown[shown["why"].notna()].drop_duplicates("record").set_index("record")
    rejected = table.loc[broken.index].assign(image=broken["image"], why=broken["why"])
    pool = table.drop(broken.index)
    pool = pool[~pool["id"].isin(alike.index)]
    usable = shown[shown["record"].isin(pool.index)]
    pool["content"] = usable.drop_duplicates("record").set_index("record")["content"]
    several = usable[usable["record"].duplicated(keep=False)].drop(columns="why")
    for record, contents in several.groupby("record")["content"]:
        pool.loc[record, "content"] = hashlib.sha256(" ".join(contents).encode()).hexdigest()
    several["record"] = pool.index.get_indexer(pd.Index(several["record"]))
    return pool.reset_index(drop=True), several, rejected
