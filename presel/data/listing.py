"""What every pool has: images, each in a task or in none yet; instructions or not."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol


class Item(NamedTuple):
    """One image of a pool.

    Attributes:
        id: Unique within its pool.
        image: Posix path relative to the image folder.
        task: The task whose budget it is chosen from; None where the source names none.
    """

    id: str
    image: str
    task: str | None


class Listing(NamedTuple):
    """The images of a pool.

    Attributes:
        items: One an image, in the source's order.
        text_only: How many records without an image were left out.
        other_files: How many files of other kinds were left out, by kind, as in `.heic`.
    """

    items: list[Item]
    text_only: int = 0
    other_files: Mapping[str, int] = {}

    def told_other_files(self) -> str:
        """The files that were left out, as in `300 .heic, 2 hidden`."""
        return ", ".join(f"{number:,} {kind}" for kind, number in self.other_files.items())


class PoolFiles(Protocol):
    """The files behind a pool."""

    @property
    def images(self) -> Path:
        """The folder that image paths are relative to."""

    def listing(self) -> Listing:
        """Every image and its task if it has one, without a word of text.

        Raises:
            PreselError: If the files are not as they should be.
        """
