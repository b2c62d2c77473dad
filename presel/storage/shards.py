"""Long computations in shards: each shard is a file, renamed into place once complete, and computed once."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from presel.console import progress
from presel.storage.files import checked, read_table, write_array, write_table

Item = TypeVar("Item")
Result = TypeVar("Result")
Batches = list[Sequence[Item]]

# Fixed: shards of an interrupted run must stay valid when other settings change.
SHARD_SIZE = 512


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Splits a sequence into chunks of `size` items; the last one may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@dataclass(frozen=True, kw_only=True)
class Shards(ABC, Generic[Item, Result]):
    """A computation on many items, in shards.

    Attributes:
        folder: The folder of the shards' files.
        items: The items of all shards.
        label: Label of the progress bar.
        to_batches: Splits a shard's items into batches.
        compute_batches: Yields one result per batch.
        measured: Measurements that were made beforehand.
        size: Number of items of a shard.
        name: What messages call an item.
        device_independent: Whether other machines compute the same to the bit.
    """

    suffix: ClassVar[str]

    folder: Path
    items: Sequence[Item]
    label: str
    to_batches: Callable[[Sequence[Item]], Batches[Item]]
    compute_batches: Callable[[Batches[Item]], Iterator[Result]]
    measured: Mapping[str, Any] = field(default_factory=dict)
    size: int = SHARD_SIZE
    name: Callable[[Item], str] = str
    device_independent: bool = True

    @abstractmethod
    def write(self, file: Path, results: list[Result]) -> None:
        """Writes the results of a shard's batches."""

    @property
    def files(self) -> list[Path]:
        """The files of all shards, in the order of the items."""
        count = math.ceil(len(self.items) / self.size)
        return [self.folder / f"part-{number:05}{self.suffix}" for number in range(count)]

    def missing(self) -> list[int]:
        """Numbers of the shards whose files do not exist yet."""
        return [number for number, file in enumerate(self.files) if not file.exists()]

    def items_of(self, number: int) -> Sequence[Item]:
        """The items of one shard."""
        return self.items[number * self.size : (number + 1) * self.size]

    def compute(self, numbers: Iterable[int] | None = None) -> None:
        """Computes those of some shards that are missing; None for all.

        The batches of all missing shards are computed as one stream, so that the worker processes that
        prepare batches ahead do not pause between two shards.
        """
        files = self.files
        chosen = list(range(len(files)) if numbers is None else numbers)
        missing = [
            (files[number], self.to_batches(self.items_of(number)))
            for number in chosen
            if not files[number].exists()
        ]
        results = self.compute_batches([batch for _, batches in missing for batch in batches])
        total = sum(len(self.items_of(number)) for number in chosen)
        with progress(self.label, total) as advance:
            advance(total - sum(len(batch) for _, batches in missing for batch in batches))
            for file, batches in missing:
                found = []
                for batch in batches:
                    found.append(next(results))
                    advance(len(batch))
                self.write(file, found)


class TableShards(Shards[Item, pd.DataFrame]):
    """Shards of a table."""

    suffix: ClassVar[str] = ".parquet"

    def write(self, file: Path, results: list[pd.DataFrame]) -> None:
        """Writes the concatenated tables."""
        write_table(file, pd.concat(results), with_digest=True)

    def joined(self) -> pd.DataFrame:
        """All rows, in the order of the items.

        Raises:
            PreselError: If a shard is damaged.
        """
        return pd.concat([read_table(checked(file)) for file in self.files], ignore_index=True)


class ArrayShards(Shards[Item, NDArray[Any]]):
    """Shards of an array."""

    suffix: ClassVar[str] = ".npy"

    def write(self, file: Path, results: list[NDArray[Any]]) -> None:
        """Writes the concatenated rows."""
        write_array(file, np.concatenate(results), with_digest=True)
