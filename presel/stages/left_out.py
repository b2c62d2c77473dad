"""The records of a pool that its settings `exclude` and `near_duplicates` leave out."""

import logging
from pathlib import Path

import pandas as pd

from presel.data.listing import Listing
from presel.data.near_duplicates import near_duplicates_to_drop
from presel.data.sources import Source
from presel.errors import PreselError
from presel.storage.files import write_table

_log = logging.getLogger(__name__)

FILE = "left_out.parquet"


def checked_near_duplicates(images: pd.DataFrame, source: Source, by_task: bool) -> pd.Series:
    """Finds the records that a run leaves out as near-duplicates, for the run and for `presel doctor`.

    Args:
        images: A row for each image of the records that can be used, in the order of the records: id, task,
            and, unless the source keeps near-duplicates, group (see `groups_of_thumbnails`).
        source: The pool's source.
        by_task: Whether only records of the same task are compared; not where tasks are still to be found.

    Returns:
        By the id of each record to leave out, that of one that it resembles.

    Raises:
        PreselError: If no record would be left.
    """
    alike = near_duplicates_to_drop(images, source.near_duplicates, by_task)
    if len(alike) and len(alike) == images["id"].nunique():
        raise PreselError(
            f"{source.group}.near_duplicates=drop leaves none of {len(alike):,} images, since each nearly "
            "repeats another one; keep one of each group by keep_one"
        )
    return alike


def write_left_out(
    folder: Path, source: Source, listing: Listing, table: pd.DataFrame, alike: pd.Series
) -> None:
    """Lists the records left out in a file, if there are any, counts them, and names tasks left empty.

    Args:
        folder: Where the file goes.
        source: The pool's source.
        listing: Its records.
        table: Those of its records that could be used: id, image, task.
        alike: What `checked_near_duplicates` found.
    """
    excluded = pd.DataFrame([item[:3] for item in listing.excluded], columns=["id", "image", "task"])
    repeated = table[table["id"].isin(alike.index)]
    resembled = [f"resembles '{name}'" for name in repeated["id"].map(alike)]
    left_out = pd.concat([excluded.assign(why="excluded"), repeated.assign(why=resembled)], ignore_index=True)
    if not len(left_out):
        return
    write_table(folder / FILE, left_out)
    _log.info(
        f"  records left out: {len(excluded):,} by {source.group}.exclude, {len(repeated):,} by "
        f"{source.group}.near_duplicates={source.near_duplicates}; they are listed in {folder / FILE}"
    )
    left = table.loc[~table["id"].isin(alike.index), "task"]
    if emptied := sorted(set(left_out["task"].dropna()) - set(left)):
        names = ", ".join(f"'{name}'" for name in emptied)
        _log.warning(f"tasks left without an image, which the run goes without: {names}")
