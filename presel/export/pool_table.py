"""A run's whole pool as one table, for the formats of programs that show it."""

import numpy as np
import pandas as pd
import pyarrow as pa

from presel.console import progress
from presel.pool_map import pool_features, pool_map
from presel.runs import RunRecord
from presel.selection.neighbors import nearest_neighbors

_NEIGHBORS = 5
# Columns that an export gives a meaning of its own, or that FiftyOne does.
_TAKEN = frozenset(
    [
        *("x", "y", "image", "chosen", "reference", "reason", "neighbors", "thumbnail"),
        *("filepath", "tags", "metadata", "media_type", "created_at", "last_modified_at"),
        *("pool_id", "images", "question", "answer", "conversation"),
    ]
)


def pool_table(run: RunRecord) -> pd.DataFrame:
    """Every record of a run's pool, and what the run knows of it.

    Returns:
        Table of id, image (relative path; of several images, the first), task, the strategy's columns
        (cluster, centrality, rank …; one named as an export's own, such as x, as `x_`), chosen, reference
        (whether it is in the reference set), reason ('' without one) and its place on the map: x, y. In the
        order of the pool.
    """
    table = run.pool[["id", "image"]].merge(_renamed(run.selection), on="id")
    chosen = table.pop("selected").eq(True)
    reason = table.pop("why").map(str, na_action="ignore").fillna("") if "why" in table else ""
    table = table.assign(chosen=chosen, reference=table["id"].isin(run.reference_ids), reason=reason)
    return table.merge(pool_map(run), on="id")


def _renamed(selection: pd.DataFrame) -> pd.DataFrame:
    """A selection whose columns have names that are free in every export."""
    names = set(selection)
    for name in [name for name in selection if name in _TAKEN]:
        free = f"{name}_"
        while free in names:
            free += "_"
        names.add(free)
        selection = selection.rename(columns={name: free})
    return selection


def neighbors_in_tasks(run: RunRecord, table: pd.DataFrame) -> pa.StructArray:
    """The nearest neighbors of each image among those of its task.

    Args:
        run: The run.
        table: Its `pool_table`.

    Returns:
        For each row, `ids`, the neighbors' row numbers from 0, and `distances`, their cosine distances, the
        nearest first.
    """
    features = pool_features(run)
    ids = np.full((len(table), _NEIGHBORS), -1)  # (n, k)
    distances = np.empty((len(table), _NEIGHBORS))  # (n, k)
    with progress(f"neighbors of {len(table):,} images", len(table)) as advance:
        for _, images in table.groupby("task"):
            rows = images.index.to_numpy()  # (m,)
            found, away = nearest_neighbors(features.rows_of(images["id"]), _NEIGHBORS, advance)
            ids[rows, : found.shape[1]] = rows[found]
            distances[rows, : found.shape[1]] = np.round(away, 6)
    known = ids >= 0  # (n, k)
    ends = np.concatenate([[0], known.sum(axis=1).cumsum()]).astype(np.int32)
    lists = [pa.ListArray.from_arrays(ends, values[known]) for values in (ids, distances)]
    return pa.StructArray.from_arrays(lists, ["ids", "distances"])
