"""The error of one record of a pool, and the callbacks that receive it."""

from collections.abc import Callable
from typing import NoReturn, TypeAlias

from presel.errors import PreselError

_MAX_PATH_LENGTH = 4096


class RecordError(PreselError):
    """A record that cannot be used.

    Attributes:
        reason: What is wrong, with the remedy.
        kind: The same in a few words, equal for all records with the same problem.
        place: The file and the record, if known.
        image: The record's image path, if it has one (and not an encoded image in its place).
    """

    def __init__(self, reason: str, kind: str = "bad record", place: str = "", image: object = None) -> None:
        """Takes the attributes; `reason` comes first so that the error can be pickled."""
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason = reason
        self.kind = kind
        self.place = place
        self.image = image if isinstance(image, str) and len(image) <= _MAX_PATH_LENGTH else None


# Receives each error; if it returns, reading continues with the next record.
OnError: TypeAlias = Callable[[RecordError], None]


def refuse(error: RecordError) -> NoReturn:
    """Stops at the first error."""
    raise error
