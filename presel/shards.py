"""Long work in shards: each is a file, renamed into place, and never computed twice."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from presel.console import progress
from presel.files import write_table

Item = TypeVar("Item")
Result = TypeVar("Result")
Batches = list[Sequence[Item]]

# Fixed, since a shard that an interrupted run left must hold the same items under other settings.
SHARD_SIZE = 512


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cuts a sequence into runs of `size`, the last one maybe shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def compute_shards(
    files: Callable[[int], Path],
    items: Sequence[Item],
    label: str,
    cut: Callable[[Sequence[Item]], Batches[Item]],
    compute: Callable[[Batches[Item]], Iterator[Result]],
    write: Callable[[Path, list[Result]], None],
) -> list[Path]:
    """Computes shard after shard, leaving out those that exist already.

    The batches of all missing shards go through `compute` as one stream, so that workers who prepare
    batches ahead never pause between two shards.

    Args:
        files: Names the file of a shard by its number.
        items: What is computed on.
        label: What the progress bar says.
        cut: Cuts a shard's items into batches.
        compute: Gives one result a batch.
        write: Writes the results of a shard's batches into its file.

    Returns:
        The files of all shards, in the order of the items.
    """
    shards = [(files(number), shard) for number, shard in enumerate(chunks(items, SHARD_SIZE))]
    missing = [(file, cut(shard)) for file, shard in shards if not file.exists()]
    results = compute([batch for _, batches in missing for batch in batches])
    with progress(label, len(items)) as advance:
        advance(len(items) - sum(len(batch) for _, batches in missing for batch in batches))
        for file, batches in missing:
            found = []
            for batch in batches:
                found.append(next(results))
                advance(len(batch))
            write(file, found)
    return [file for file, _ in shards]


def table_in_shards(
    folder: Path,
    items: Sequence[Item],
    label: str,
    cut: Callable[[Sequence[Item]], Batches[Item]],
    compute: Callable[[Batches[Item]], Iterator[pd.DataFrame]],
) -> pd.DataFrame:
    """Computes a table by `compute_shards`, one parquet file a shard in `folder`.

    Returns:
        All rows, in the order of the items.
    """
    files = compute_shards(
        lambda number: folder / f"part-{number:05}.parquet",
        items,
        label,
        cut,
        compute,
        lambda file, tables: write_table(file, pd.concat(tables)),
    )
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
