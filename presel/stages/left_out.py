"""The records of a pool that its settings `exclude` and `near_duplicates` leave out."""

import logging
from pathlib import Path

import pandas as pd

from presel.data.listing import Listing
from presel.data.near_duplicates import groups_of_thumbnails, superfluous
from presel.data.sources import Source
from presel.errors import PreselError
from presel.storage.files import write_table

_log = logging.getLogger(__name__)

FILE = "left_out.parquet"


def near_duplicates(images: pd.DataFrame, source: Source) -> pd.Series:
    """Finds the records to leave out as near-duplicates.

    Args:
        images: A row for each image, in the order of the records: id, task, why (it cannot be used, None if
            it can), pixels, thumbnail.
        source: The pool's source.

    Returns:
        By the id of each record to leave out, that of one that it resembles.

    Raises:
        PreselError: If no record would be left.
    """
    if source.near_duplicates == "keep":
        return pd.Series(dtype=object)
    usable = images[~images["id"].isin(images.loc[images["why"].notna(), "id"])]
    groups = groups_of_thumbnails(list(usable["thumbnail"]))  # (n,)
    alike = superfluous(usable.assign(group=groups), source.near_duplicates)
    if len(alike) and len(alike) == usable["id"].nunique():
        raise PreselError(
            f"{source.group}.near_duplicates=drop leaves none of {len(alike):,} images, since each nearly "
            "repeats another one; keep one of each group by keep_one"
        )
    return alike


def write_left_out(
    folder: Path, source: Source, listing: Listing, table: pd.DataFrame, alike: pd.Series
) -> None:
    """Lists the records left out in a file, if there are any, counts them, and names tasks that lose all.

    Args:
        folder: Where the file goes.
        source: The pool's source.
        listing: Its records.
        table: Those of its records that could be used: id, image, task.
        alike: What `near_duplicates` found.
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
        f"{source.group}.near_duplicates={source.near_duplicates}"
    )
    left = table.loc[~table["id"].isin(alike.index), "task"]
    if emptied := sorted(set(left_out["task"].dropna()) - set(left)):
        names = ", ".join(f"'{name}'" for name in emptied)
        _log.warning(f"tasks that lose all their images so, and that the run goes without: {names}")
