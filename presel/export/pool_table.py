"""A run's whole pool as one table, for the formats of programs that show it."""

import numpy as np
import pandas as pd

from presel.pool_map import pool_features, pool_map
from presel.runs import RunRecord
from presel.selection.neighbors import nearest_neighbors

_NEIGHBORS = 5


def pool_table(run: RunRecord) -> pd.DataFrame:
    """Every record of a run's pool, and what the run knows of it.

    Returns:
        Table of id, image (relative path; of several images, the first), task, the strategy's columns
        (cluster, centrality, rank …), chosen, reference (whether it is in the reference set), reason (''
        without one) and its place on the map: x, y. In the order of the pool.
    """
    table = run.pool[["id", "image"]].merge(run.selection.drop(columns="image", errors="ignore"), on="id")
    chosen = table.pop("selected").eq(True)
    reason = table.pop("why").fillna("") if "why" in table else ""
    table = table.assign(chosen=chosen, reference=table["id"].isin(run.reference_ids), reason=reason)
    return table.merge(pool_map(run), on="id")


def neighbors_in_tasks(run: RunRecord, table: pd.DataFrame) -> pd.Series:
    """The nearest neighbors of each image among those of its task.

    Args:
        run: The run.
        table: Its `pool_table`.

    Returns:
        For each row, `ids`, the neighbors' row numbers from 0, and `distances`, their cosine distances, the
        nearest first.
    """
    features = pool_features(run)
    found: dict[int, dict[str, list[float]]] = {}
    for _, images in table.groupby("task"):
        rows = images.index.to_numpy()  # (n,)
        neighbors, distances = nearest_neighbors(features.rows_of(images["id"]), _NEIGHBORS)  # (n, k), (n, k)
        for row, ids, away in zip(rows, rows[neighbors], distances, strict=True):
            found[row] = {"ids": ids.tolist(), "distances": np.round(away, 6).tolist()}
    return pd.Series(found)
