"""Base of sources whose images are packed in archives; a stage unpacks them once, into the store."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import pandas as pd
import pyarrow.parquet

from presel.component import component
from presel.data.errors import OnError, refuse
from presel.data.listing import Item, Listing
from presel.data.sources import ImageSource
from presel.errors import PreselError
from presel.storage.executor import Sharded
from presel.storage.files import sync_tree, write_table
from presel.storage.shards import Batches, TableShards
from presel.storage.stage import Stage
from presel.storage.store import Store


class PackedImage(NamedTuple):
    """An image of an archive.

    Attributes:
        id: Unique within the archive.
        task: Its task, or None.
        suffix: File name suffix of the unpacked image, including the dot.
        data: The bytes of the image file.
    """

    id: str
    task: str | None
    suffix: str
    data: bytes


class Archive(Protocol):
    """An archive of images; a `PreselError` is raised if a file is missing or malformed."""

    def identity(self) -> dict[str, Any]:
        """What decides the images: the archive's files and how they are read."""

    def parts(self) -> Sequence[Iterable[PackedImage]]:
        """The images in parts, the same at every call; a part is read while it is iterated over."""


@dataclass(frozen=True, kw_only=True)
class UnpackedStage(Stage[Path], Sharded):
    """Stage `unpacked`: the folder `images`, bytes unchanged, and `listing.parquet` (id, image, task).

    Files are numbered by their position: no name from the archive becomes a path.

    Attributes:
        archive: The archive.
    """

    name: ClassVar[str] = "unpacked"
    version: ClassVar[int] = 2

    archive: Archive

    def shards(self, store: Store, folder: Path) -> TableShards[int]:
        """One shard for each part of the archive."""
        parts = self.archive.parts()

        def unpack(batches: Batches[int]) -> Iterator[pd.DataFrame]:
            for (number,) in batches:
                yield _unpack(parts[number], folder / "images", f"{number:05}")

        return TableShards(
            folder=folder / "shards",
            items=range(len(parts)),
            label="unpacking images",
            to_batches=lambda shard: [shard],
            compute_batches=unpack,
            size=1,
            name=lambda number: f"part {number} of the archive",
        )

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Unpacks the parts that an interrupted run has not finished.

        Raises:
            PreselError: If there is no image, or two have the same id.
        """
        shards = store.executor.compute(self, store, folder)
        table = shards.joined() if shards.files else pd.DataFrame({"id": []})
        if not len(table):
            raise PreselError("the pool's files contain no image; give some with at least one")
        repeated = table["id"][table["id"].duplicated()]
        if len(repeated):
            raise PreselError(
                f"two images of the pool are named '{repeated.iloc[0]}'; give each a name of its own"
            )
        write_table(folder / "listing.parquet", table)
        return {"images": len(table)}

    def load(self, folder: Path) -> Path:
        """The folder itself."""
        return folder


def _unpack(part: Iterable[PackedImage], images: Path, name: str) -> pd.DataFrame:
    (images / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for position, packed in enumerate(part):
        image = f"{name}/{position:06}{packed.suffix}"
        (images / image).write_bytes(packed.data)
        rows.append((packed.id, image, packed.task))
    # The images must be on disk before the table that lists them.
    sync_tree(images / name)
    return pd.DataFrame(rows, columns=["id", "image", "task"])


class UnpackedFiles(NamedTuple):
    """Unpacked images.

    Attributes:
        folder: The result of `UnpackedStage`.
        task: The task of images for which the archive names none.
    """

    folder: Path
    task: str | None

    @property
    def images(self) -> Path:
        """The folder of the image files."""
        return self.folder / "images"

    def listing(self, on_error: OnError = refuse) -> Listing:
        """Every image, in the order of the archive."""
        rows = pyarrow.parquet.read_table(self.folder / "listing.parquet").to_pylist()
        return Listing([Item(row["id"], row["image"], row["task"] or self.task) for row in rows])


@component
class PackedImages(ImageSource):
    """Base class of sources whose images are packed in an archive."""

    def open(self) -> Archive:
        """The archive."""
        raise NotImplementedError

    @property
    def stages(self) -> tuple[UnpackedStage, ...]:
        """The stage that unpacks the images."""
        return (self.unpacked,)

    def files(self, store: Store) -> UnpackedFiles:
        """The unpacked images."""
        return UnpackedFiles(store.verified(self.unpacked), self.task)

    @cached_property
    def unpacked(self) -> UnpackedStage:
        """The stage that unpacks the images; its key stands for the archive's content."""
        return UnpackedStage(archive=self.open())
