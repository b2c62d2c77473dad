"""The images of a pool: ids, paths and tasks, without any text."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from presel.data.errors import OnError, refuse


class Item(NamedTuple):
    """One image of a pool.

    Attributes:
        id: Unique within its pool.
        image: Posix path relative to the image folder.
        task: The task whose budget it is chosen from; None if the source names none.
    """

    id: str
    image: str
    task: str | None


class Listing(NamedTuple):
    """The images of a pool.

    Attributes:
        items: The images, in the source's order.
        text_only: Number of records without an image, which were skipped.
        other_files: Number of skipped files by kind, such as `.heic`.
    """

    items: list[Item]
    text_only: int = 0
    other_files: Mapping[str, int] = {}

    def describe_skipped(self) -> str:
        """The skipped files, as in `300 .heic, 2 hidden`."""
        return ", ".join(f"{number:,} {kind}" for kind, number in self.other_files.items())


class PoolFiles(Protocol):
    """The files of a pool."""

    @property
    def images(self) -> Path:
        """The folder that image paths are relative to."""

    def listing(self, on_error: OnError = refuse) -> Listing:
        """Lists every image, with its task if it has one; see `OnError`.

        Raises:
            PreselError: If the files are malformed.
        """
