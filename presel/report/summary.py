"""The table at the end of a run or a sweep: models by benchmarks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from presel.console import console
from presel.console.escaping import csv_text
from presel.storage.files import atomic

# The columns of `RunRecord.summary` that are no benchmarks.
_OTHERS = ("strategy", "mean", "relative", "requested", "seconds")


def print_summary(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows of `RunRecord.summary`, scores and shares in per cent."""
    table = Table(
        title="Scores (%), greedy generation on held-out benchmarks",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    # In order of first mention; in a sweep over benchmarks some rows lack some.
    benchmarks = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in _OTHERS]
    table.add_column("strategy", no_wrap=True)
    for name in [*benchmarks, "mean", "Rel. %", "requested %", "time"]:
        table.add_column(name, justify="right")
    for row in rows:
        shares = [percent(row.get(name)) for name in [*benchmarks, "mean", "relative", "requested"]]
        table.add_row(row["strategy"], *shares, "–" if row["seconds"] is None else f"{row['seconds']:.0f} s")
    console.print(table)


def write_summary(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of `RunRecord.summary` as CSV, in full precision."""
    with atomic(file) as temporary:
        temporary.write_text(csv_text(pd.DataFrame(list(rows))), encoding="utf-8")


def percent(share: float | None) -> str:
    """A share in per cent to one decimal; a dash for None or NaN."""
    return "–" if pd.isna(share) else f"{100 * share:.1f}"
