"""The table of scores at the end of a run or a sweep: models by benchmarks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from presel.console import console
from presel.console.escaping import csv_text
from presel.evaluation.scores import Scores
from presel.runs import SUMMARY, RunRecord, load_run
from presel.settings.usage import sets_any_of
from presel.storage.files import atomic
from presel.storage.run_folder import FILE

# Overrides that name no run: where it goes, and how far.
_NO_NAMES = ("hydra", "paths", "until")


def print_summary(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows of `RunRecord.summary`, scores and shares in percent."""
    table = Table(
        title="Scores (%), greedy generation on held-out benchmarks",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    # In order of first mention; in a sweep over benchmarks some rows lack some.
    benchmarks = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in SUMMARY]
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
    """A share in percent to one decimal; a dash for None or NaN."""
    return "–" if pd.isna(share) else f"{100 * share:.1f}"


def summarize_sweep(folder: Path) -> None:
    """Prints the scores of all jobs in a sweep's folder, and writes them to its `summary.csv`."""
    files = sorted(folder.glob(f"*/{FILE}"), key=lambda file: (len(file.parent.name), file))
    records = [record for record in (load_run(file.parent) for file in files) if record.tuned]
    if not records:
        return
    rows = _rows(records)
    write_summary(folder / "summary.csv", rows)
    print_summary(rows)
    console.print(f"summary of the sweep          {folder / 'summary.csv'}")


def _rows(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Rows of all jobs, named by strategy and settings; a baseline that jobs share is listed once."""
    rows: list[dict[str, Any]] = []
    known: dict[str, list[Scores]] = {}
    for record, job in zip(records, job_names(records), strict=True):
        *baselines, tuned = record.summary()
        for model, row in zip(record.baselines, baselines, strict=True):
            # In a sweep over models the base differs; further ones are named by the first job with them.
            others = known.setdefault(model.name, [])
            if model.scores not in others:
                rows.append(row | {"strategy": f"{model.name} ({job})"} if others else row)
                others.append(model.scores)
        # Jobs that differ in what they do not read are one.
        if (row := tuned | {"strategy": job}) not in rows:
            rows.append(row)
    return rows


def job_names(records: Sequence[RunRecord]) -> list[str]:
    """Names runs by their strategy and the overrides that they do not share."""
    common = set.intersection(*(set(record.overrides) for record in records))
    return [
        " ".join(
            [record.strategy]
            + [
                override
                for override in record.overrides
                if override not in common
                and not override.startswith("strategy=")
                and not sets_any_of(override, (*_NO_NAMES, *record.unused))
            ]
        )
        for record in records
    ]
