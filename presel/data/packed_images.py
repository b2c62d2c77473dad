"""What sources of packed images share: they are unpacked once, into the store."""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

from presel.component import component
from presel.data.archive import Archive
from presel.data.image_source import ImageSource
from presel.data.listing import Item, Listing, OnError, refuse
from presel.data.unpacked import UnpackedStage
from presel.storage.store import Store


class UnpackedFiles(NamedTuple):
    """Images that were unpacked.

    Attributes:
        folder: The result of `UnpackedStage`.
        task: The task of images that came without one.
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
    """Base of sources whose images are packed in an archive."""

    def open(self) -> Archive:
        """The archive."""
        raise NotImplementedError

    @property
    def stages(self) -> tuple[UnpackedStage, ...]:
        """The stage that unpacks the images."""
        return (self._unpacked,)

    def files(self, store: Store) -> UnpackedFiles:
        """The unpacked images."""
        return UnpackedFiles(store.verified(self._unpacked), self.task)

    def identity(self) -> dict[str, Any]:
        """What decides the unpacked images; the task of those without one."""
        return {
            "unpacked": self._unpacked.key,
            "task": self.task,
            "min_side": self.min_side,
        }

    @cached_property
    def _unpacked(self) -> UnpackedStage:
        return UnpackedStage(archive=self.open())
