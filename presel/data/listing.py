"""The images of a pool: ids, paths and tasks, without any text."""

import hashlib
from collections import Counter
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

    def sample(self, size: int | None, per_task: int | None) -> "Listing":
        """A uniform random sample of the items, in their order.

        Which items are in it depends on their ids alone, neither on their order nor on a seed; raising one of
        the two numbers where the other is None only adds items.

        Args:
            size: Maximum number of items, drawn from those that `per_task` leaves; None for all.
            per_task: Maximum number of items of each task; None for all.
        """
        # The order of the ids' hashes is as good as random.
        shuffled = sorted(self.items, key=lambda item: hashlib.sha256(item.id.encode()).digest())
        seen: Counter[str | None] = Counter()
        drawn = []
        for item in shuffled:
            seen[item.task] += 1
            if per_task is None or seen[item.task] <= per_task:
                drawn.append(item.id)
        chosen = set(drawn[:size])
        return self._replace(items=[item for item in self.items if item.id in chosen])


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
