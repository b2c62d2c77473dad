"""Long work in shards: each is a file, renamed into place, and never computed twice."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from presel.console import progress
from presel.files import write_table

Item = TypeVar("Item")

# Fixed, since a shard that an interrupted run left must hold the same items under other settings.
SHARD_SIZE = 512


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Cuts a sequence into runs of `size`, the last one maybe shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def table_in_shards(
    folder: Path, items: Sequence[Item], label: str, compute: Callable[[Sequence[Item]], pd.DataFrame]
) -> pd.DataFrame:
    """Computes a table shard by shard, leaving out those that `folder` holds already.

    Args:
        folder: Takes one parquet file a shard.
        items: What the rows are computed from.
        label: What the progress bar says.
        compute: Gives the rows of one shard's items.

    Returns:
        All rows, in the order of the items.
    """
    tables = []
    with progress(label, len(items)) as advance:
        for number, shard in enumerate(chunks(items, SHARD_SIZE)):
            path = folder / f"part-{number:05}.parquet"
            if not path.exists():
                write_table(path, compute(shard))
            tables.append(pd.read_parquet(path))
            advance(len(shard))
    return pd.concat(tables, ignore_index=True)
