"""Work that the tests of Ray place on actors, which import this module."""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from presel.errors import PreselError
from presel.storage.executor import Sharded
from presel.storage.shards import Batches, TableShards
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Squares(Sharded):
    """Squares of numbers, two a shard; `computed` in its folder has a line for each that was begun.

    Attributes:
        count: The numbers are those below.
        ends: How many times a number ends the process that computes it.
        mistakes: Numbers that are a mistake of the user.
        errors: Numbers that are an unexpected error.
        full: Numbers for which the disk has no room.
        opens: Whether other processes can read it.
        away: Whether this is another process's.
    """

    count: int
    ends: Mapping[int, int] = field(default_factory=dict)
    mistakes: Sequence[int] = ()
    errors: Sequence[int] = ()
    full: Sequence[int] = ()
    opens: bool = True
    away: bool = False

    def with_workers(self, workers: int) -> "Squares":
        return replace(self, away=True)

    def shards(self, store: Store, folder: Path) -> TableShards[int]:
        if self.away and not self.opens:
            raise ModuleNotFoundError("No module named 'squares'")

        def compute(batches: Batches[int]) -> Iterator[pd.DataFrame]:
            for batch in batches:
                for number in batch:
                    self._begin(number, folder / "computed")
                yield pd.DataFrame({"number": batch, "square": [number**2 for number in batch]})

        return TableShards(
            folder=folder / "shards",
            items=range(self.count),
            label="squaring",
            to_batches=lambda shard: [shard],
            compute_batches=compute,
            size=2,
            name=lambda number: f"number {number}",
        )

    def _begin(self, number: int, log: Path) -> None:
        with log.open("a") as file:
            file.write(f"{number}\n")
        if log.read_text().split().count(str(number)) <= self.ends.get(number, 0):
            os._exit(1)
        if number in self.mistakes:
            raise PreselError(f"number {number} is odd; leave it out")
        if number in self.errors:
            raise RuntimeError(f"no square of {number}")
        if number in self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True, kw_only=True)
class Environment(Sharded):
    """The environment variables of the process that computes it."""

    def shards(self, store: Store, folder: Path) -> TableShards[int]:
        return TableShards(
            folder=folder / "shards",
            items=[0],
            label="looking around",
            to_batches=lambda shard: [shard],
            compute_batches=lambda _: iter([pd.DataFrame({"name": os.environ.keys()})]),
        )
