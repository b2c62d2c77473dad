"""The records of a pool: ids, image paths and tasks, without any text."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from presel.data.errors import OnError, refuse


class Item(NamedTuple):
    """One record of a pool, which has an image or several.

    Attributes:
        id: Unique within its pool.
        image: Posix path relative to the image folder; of several images, the first.
        task: The task whose budget it is chosen from; None if the source names none.
        more: Paths of the other images, in the record's order.
    """

    id: str
    image: str
    task: str | None
    more: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of all its images."""
        return (self.image, *self.more)


class Listing(NamedTuple):
    """The records of a pool.

    Attributes:
        items: The records, in the source's order.
        text_only: Number of records without an image, which were skipped.
        other_files: Number of skipped files by kind, such as `.heic`.
        kept: Ids of the records without an image that are trained on beside the selection.
        excluded: Records that the user has excluded, see `presel.data.exclusion`.
    """

    items: list[Item]
    text_only: int = 0
    other_files: Mapping[str, int] = {}
    kept: Sequence[str] = ()
    excluded: Sequence[Item] = ()

    def describe_skipped(self) -> str:
        """The skipped files, as in `300 .heic, 2 hidden`."""
        return ", ".join(f"{number:,} {kind}" for kind, number in self.other_files.items())

    def sample(self, size: int | None, per_task: int | None) -> "Listing":
        """A uniform random sample of the items, in their order, and the same share of `kept`.

        Which items are in it depends on their ids alone, neither on their order nor on a seed; raising one of
        the two numbers where the other is None only adds items.

        Args:
            size: Maximum number of items, drawn from those that `per_task` leaves; None for all.
            per_task: Maximum number of items of each task; None for all.
        """
        shuffled = sorted(self.items, key=lambda item: sampling_order(item.id))
        seen: Counter[str | None] = Counter()
        drawn = []
        for item in shuffled:
            seen[item.task] += 1
            if per_task is None or seen[item.task] <= per_task:
                drawn.append(item.id)
        chosen = set(drawn[:size])
        items = [item for item in self.items if item.id in chosen]
        n_kept = round(len(self.kept) * len(items) / len(self.items)) if items else 0
        kept = set(sorted(self.kept, key=sampling_order)[:n_kept])
        return self._replace(items=items, kept=[name for name in self.kept if name in kept])


def sampling_order(name: str) -> bytes:
    """Sorts ids in an order that is as good as random, in which samples are drawn."""
    return hashlib.sha256(name.encode()).digest()


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
