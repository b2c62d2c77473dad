"""Long work in shards: each is a file, renamed into place, and never computed twice."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from presel.console import progress
from presel.storage.files import checked, read_table, write_array, write_table

Item = TypeVar("Item")
Result = TypeVar("Result")
Batches = list[Sequence[Item]]

# Fixed, since a shard that an interrupted run left must hold the same items under other settings.
SHARD_SIZE = 512


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cuts a sequence into runs of `size`, the last one maybe shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@dataclass(frozen=True, kw_only=True)
class Shards(Generic[Item, Result]):
    """Work to be done in shards.

    Attributes:
        name: Names the file of a shard by its number.
        items: What is computed on.
        label: What the progress bar says.
        cut: Cuts a shard's items into batches.
        results: Gives one result a batch.
        write: Writes the results of a shard's batches into its file.
        measured: What was measured beforehand.
    """

    name: Callable[[int], Path]
    items: Sequence[Item]
    label: str
    cut: Callable[[Sequence[Item]], Batches[Item]]
    results: Callable[[Batches[Item]], Iterator[Result]]
    write: Callable[[Path, list[Result]], None]
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """The files of all shards, in the order of the items."""
        return [self.name(number) for number in range(math.ceil(len(self.items) / SHARD_SIZE))]

    def missing(self) -> list[Path]:
        """The files that do not exist yet."""
        return [file for file in self.files if not file.exists()]

    def compute(self, rank: int = 0, processes: int = 1) -> None:
        """Computes shard after shard, leaving out those that exist already.

        The batches of all missing shards go through `results` as one stream, so that workers who prepare
        batches ahead never pause between two shards.

        Args:
            rank: Number of the process.
            processes: Of how many; each computes every `processes`-th shard.
        """
        shards = list(zip(self.files, chunks(self.items, SHARD_SIZE), strict=True))[rank::processes]
        missing = [(file, self.cut(shard)) for file, shard in shards if not file.exists()]
        results = self.results([batch for _, batches in missing for batch in batches])
        total = sum(len(shard) for _, shard in shards)
        with progress(self.label, total) as advance:
            advance(total - sum(len(batch) for _, batches in missing for batch in batches))
            for file, batches in missing:
                found = []
                for batch in batches:
                    found.append(next(results))
                    advance(len(batch))
                self.write(file, found)


def table_shards(
    folder: Path,
    items: Sequence[Item],
    label: str,
    cut: Callable[[Sequence[Item]], Batches[Item]],
    results: Callable[[Batches[Item]], Iterator[pd.DataFrame]],
    **measured: Any,
) -> Shards[Item, pd.DataFrame]:
    """Shards of a table, one parquet file each in `folder`; see `Shards`."""
    return Shards(
        name=lambda number: folder / f"part-{number:05}.parquet",
        items=items,
        label=label,
        cut=cut,
        results=results,
        write=lambda file, tables: write_table(file, pd.concat(tables), with_digest=True),
        measured=measured,
    )


def array_shards(
    folder: Path,
    items: Sequence[Item],
    label: str,
    cut: Callable[[Sequence[Item]], Batches[Item]],
    results: Callable[[Batches[Item]], Iterator[NDArray[np.float16]]],
    **measured: Any,
) -> Shards[Item, NDArray[np.float16]]:
    """Shards of an array, one `.npy` file each in `folder`; see `Shards`."""
    return Shards(
        name=lambda number: folder / f"part-{number:05}.npy",
        items=items,
        label=label,
        cut=cut,
        results=results,
        write=lambda file, rows: write_array(file, np.concatenate(rows), with_digest=True),
        measured=measured,
    )


def joined_table(shards: Shards[Item, pd.DataFrame]) -> pd.DataFrame:
    """All rows of `table_shards`, in the order of the items.

    Raises:
        PreselError: If a shard is damaged.
    """
    return pd.concat([read_table(checked(file)) for file in shards.files], ignore_index=True)
