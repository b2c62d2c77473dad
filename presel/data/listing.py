"""What every pool has: images, each in one task; instructions or not."""

from pathlib import Path
from typing import NamedTuple, Protocol


class Item(NamedTuple):
    """One image of a pool.

    Attributes:
        id: Unique within its pool.
        image: Posix path relative to the image folder.
        task: The task whose budget it is chosen from.
    """

    id: str
    image: str
    task: str


class Listing(NamedTuple):
    """The images of a pool.

    Attributes:
        items: One an image, in the source's order.
        text_only: How many records without an image were left out.
    """

    items: list[Item]
    text_only: int = 0


class PoolFiles(Protocol):
    """The files behind a pool."""

    @property
    def images(self) -> Path:
        """The folder that image paths are relative to."""

    def listing(self) -> Listing:
        """Every image and its task, without a word of text.

        Raises:
            PreselError: If the files are not as they should be.
        """
