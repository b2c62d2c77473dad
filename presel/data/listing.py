"""What every pool has: images, each in a task or in none yet; instructions or not."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol, TypeAlias

from presel.errors import PreselError

_LONGEST_PATH = 4096


class RecordError(PreselError):
    """What is wrong with one record of a pool.

    Attributes:
        reason: The sentence that tells it, with the remedy.
        kind: The same in a few words, alike for all records with this mistake.
        place: The file and the record, if they are known.
        image: The image that the record names, if it names one and not its whole content.
    """

    def __init__(self, reason: str, kind: str = "bad record", place: str = "", image: object = None) -> None:
        """Takes the attributes; their order lets the error be rebuilt from its message (pickling)."""
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason = reason
        self.kind = kind
        self.place = place
        self.image = image if isinstance(image, str) and len(image) <= _LONGEST_PATH else None


OnError: TypeAlias = Callable[[RecordError], None]


def refuse(error: RecordError) -> NoReturn:
    """Stops at the first mistake."""
    raise error


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

    def listing(self, on_error: OnError = refuse) -> Listing:
        """Every image and its task if it has one, without a word of text.

        Args:
            on_error: Told of each record that cannot be used; where it returns, the others are listed.

        Raises:
            PreselError: If the files are not as they should be.
        """
