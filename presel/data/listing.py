"""What every pool has: images, each in one task; instructions or not."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol, TypeAlias

from presel.errors import PreselError


class RecordError(PreselError):
    """What is wrong with one record of a pool.

    Attributes:
        reason: The sentence that tells it, with the remedy.
        kind: The same in a few words, alike for all records with this mistake.
        place: The file and the record, if they are known.
        image: The image that the record names, if it names one.
    """

    def __init__(self, reason: str, kind: str = "bad record", place: str = "", image: object = None) -> None:
        """Takes the attributes; their order lets the error be rebuilt from its message (pickling)."""
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason = reason
        self.kind = kind
        self.place = place
        self.image = image if isinstance(image, str) else None


OnError: TypeAlias = Callable[[RecordError], None]


def refuse(error: RecordError) -> NoReturn:
    """Stops at the first mistake."""
    raise error


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
