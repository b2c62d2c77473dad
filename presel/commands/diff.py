"""`presel diff`: what two selections have in common, task by task."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.table import Table

from presel.console import ArgumentParser, console
from presel.console.escaping import csv_text
from presel.errors import PreselError
from presel.runs import check_ids, load_run
from presel.storage.files import atomic
from presel.storage.run_folder import RUN_FILE


def main(arguments: Sequence[str]) -> int:
    """Runs `presel diff`; returns 1 if the selections differ."""
    parser = ArgumentParser(
        prog="presel diff", description="Compare two selections of one pool, task by task."
    )
    parser.add_argument("first", type=Path, help="folder of a run, or its selection.parquet")
    parser.add_argument("second", type=Path, help="the other one")
    parser.add_argument("--out", type=Path, help="CSV file for the images that only one of them chose")
    options = parser.parse_args(arguments)
    both = joined(read_selection(options.first), read_selection(options.second))
    counts = by_task(both)
    table = Table("task", *("images", "first", "second", "both", "Jaccard %"))
    # The totals stand apart, since a task may have any name.
    for part in (counts, counts.sum().to_frame("all").T):
        for task, row in part.iterrows():
            either = row["first"] + row["second"] - row["both"]
            shared = f"{100 * row['both'] / either:.1f}" if either else "–"
            table.add_row(str(task), *map(str, row), shared)
        table.add_section()
    console.print(table)
    differing = both[both["first"] != both["second"]]
    console.print(f"{len(differing):,} images are in one selection only")
    if options.out:
        with atomic(options.out) as temporary:
            temporary.write_text(csv_text(differing), encoding="utf-8")
        console.print(options.out)
    return int(len(differing) > 0)


def read_selection(path: Path) -> pd.DataFrame:
    """Reads the table of all usable images: id, task, selected, and possibly more.

    Args:
        path: A `selection.parquet`, or the folder of a run, whose `run.json` names one.

    Raises:
        PreselError: If there is none, or it is damaged.
    """
    if (path / RUN_FILE).exists():
        return load_run(path).selection
    file = path / "selection.parquet" if path.is_dir() else path
    if not file.exists():
        raise PreselError(f"{file}: there is no such file; name the folder of a run, or a selection.parquet")
    try:
        table = pd.read_parquet(file, columns=["id", "task", "selected"])
    except (OSError, ValueError) as error:
        raise PreselError(
            f"{file}: no selection can be read from it ({str(error).splitlines()[0]}); name the folder of a "
            "run, or a selection.parquet"
        ) from error
    check_ids(file, table)
    return table


def joined(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Joins two selections, in one row per image: id, task, first, second (both bool).

    Raises:
        PreselError: If they do not have the same images in the same tasks.
    """
    keys = ["id", "task"]
    both = first.merge(second, on=keys, how="outer", suffixes=("_1", "_2"), indicator=True)
    unmatched = both[both["_merge"] != "both"]
    if len(unmatched):
        whose = "first" if unmatched["_merge"].iloc[0] == "left_only" else "second"
        raise PreselError(
            f"the selections are from different pools: image '{unmatched['id'].iloc[0]}' of task "
            f"'{unmatched['task'].iloc[0]}' is only in the {whose} ({len(unmatched)} such); compare runs "
            "on one pool"
        )
    return both[keys].assign(first=both["selected_1"].eq(True), second=both["selected_2"].eq(True))


def by_task(both: pd.DataFrame) -> pd.DataFrame:
    """Counts images, first, second and both for each task."""
    counted = both.assign(images=True, both=both["first"] & both["second"])
    return counted.groupby("task")[["images", "first", "second", "both"]].sum().astype(int)
