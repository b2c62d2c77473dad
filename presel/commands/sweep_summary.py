"""One table over the jobs of a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from presel.console import console
from presel.evaluation.scores import Scores
from presel.report.summary import print_summary, write_summary
from presel.runs import FILE, RunRecord, load_run
from presel.settings.usage import group_of


def summarize(folder: Path) -> None:
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
    for record, job in zip(records, _job_names(records), strict=True):
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


def _job_names(records: Sequence[RunRecord]) -> list[str]:
    """Names jobs by their strategy and the overrides that they do not share."""
    common = set.intersection(*(set(record.overrides) for record in records))
    return [
        " ".join(
            [record.strategy]
            + [
                override
                for override in record.overrides
                if override not in common
                and not override.startswith("strategy=")
                and group_of(override) not in record.unused_groups
            ]
        )
        for record in records
    ]
