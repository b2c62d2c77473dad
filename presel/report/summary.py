"""The table of scores at the end of a run or a sweep: models by benchmarks."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.table import Table

from presel.console import console
from presel.console.escaping import csv_text, visible
from presel.evaluation.scores import Scores
from presel.runs import SUMMARY, RunRecord, load_run
from presel.settings.usage import sets_any_of
from presel.storage.files import atomic
from presel.storage.run_folder import finished_jobs

# Overrides that name no run: where it goes, and how far.
_NO_NAMES = ("hydra", "paths", "until")


# The least width at which settings' names fold beside scores.
_NAME_WIDTH = 20
# A number that is a setting's value, or in its list of values.
_NUMBER = re.compile(r"(?<=[=\[,])-?\d+\.\d+(?:[eE][-+]?\d+)?(?=[\s,)\]]|$)")


def print_summary(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows of `RunRecord.summary`, scores and shares in percent."""
    # In order of first mention; in a sweep over benchmarks some rows lack some.
    benchmarks = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in SUMMARY]
    seconds = [row["seconds"] for row in rows]
    console.print(
        _ScoreTable(
            [visible(row["strategy"]) for row in rows],
            [_Column(visible(name), [percent(row.get(name)) for row in rows]) for name in benchmarks],
            [
                _Column("mean", [percent(row["mean"]) for row in rows]),
                _Column("Rel. %", [percent(row.get("relative")) for row in rows]),
                _Column("requested %", [percent(row["requested"]) for row in rows]),
                _Column("time", ["–" if one is None else f"{one:.0f} s" for one in seconds]),
            ],
        )
    )


class _Column(NamedTuple):
    header: str
    cells: Sequence[str]


class _ScoreTable(NamedTuple):
    """A table that never cuts a number: a narrow terminal has it turned, or else without the benchmarks.

    A pipe or a file has all of it, whatever its width, with each setting on one line.
    """

    names: Sequence[str]
    scores: Sequence[_Column]
    totals: Sequence[_Column]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws the most that fits."""
        numbers, room = [*self.scores, *self.totals], options.max_width
        if not console.file.isatty():
            yield _drawn(*_beside(self.names, numbers, sys.maxsize))
            return
        names = shortened_names(self.names)
        longest_word = max(cell_len(word) for name in names for word in name.split())
        for columns, widths in (
            _beside(names, numbers, room),
            _above(names, numbers, room),
            _above(names, numbers, longest_word),
        ):
            if _width(widths) <= room:
                yield _drawn(columns, widths)
                return
        yield _drawn(*_beside(names, self.totals, room))
        yield (
            f"{len(self.scores)} benchmarks do not fit this terminal; summary.csv in the folder named below "
            "has all scores"
        )


def _beside(
    names: Sequence[str], numbers: Sequence[_Column], room: int
) -> tuple[Sequence[_Column], Sequence[int]]:
    """A setting in each row, and widths of columns; names fold to fit the room, unless it is too narrow."""
    columns = [_Column("strategy", names), *numbers]
    longest, *others = _widths(columns)
    left = room - _width([0, *others])
    return columns, [min(longest, max(left, _NAME_WIDTH)), *others]


def _above(
    names: Sequence[str], numbers: Sequence[_Column], most: int
) -> tuple[Sequence[_Column], Sequence[int]]:
    """A setting in each column, and widths of columns; names fold where they are longer than `most`."""
    of_settings = zip(*(column.cells for column in numbers), strict=True)
    columns = [
        _Column("", [column.header for column in numbers]),
        *(_Column(name, cells) for name, cells in zip(names, of_settings, strict=True)),
    ]
    return columns, _widths(columns, most)


def _widths(columns: Sequence[_Column], most: int = sys.maxsize) -> list[int]:
    """What columns take, headers no more than `most`."""
    return [max(min(cell_len(header), most), *map(cell_len, cells)) for header, cells in columns]


def _width(widths: Sequence[int]) -> int:
    """What a table of such columns takes: each has a space of padding, and there are lines around them."""
    return sum(widths) + 2 * len(widths) + 1


def _drawn(columns: Sequence[_Column], widths: Sequence[int]) -> Table:
    table = Table(
        title="Scores (%), greedy generation on held-out benchmarks",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        width=_width(widths),
    )
    for column, width in zip(columns, widths, strict=True):
        justify: JustifyMethod = "left" if column is columns[0] else "right"
        table.add_column(column.header, justify=justify, width=width, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def _rounded(number: re.Match[str]) -> str:
    """A number of more than 6 significant digits with 6; others may be a version or a name."""
    digits = number[0].lower().partition("e")[0].lstrip("-0.").replace(".", "")
    return f"{float(number[0]):.6g}" if len(digits) > 6 else number[0]


def shortened_names(names: Sequence[str]) -> Sequence[str]:
    """Names with numbers of at most 6 significant digits, unless that makes two of them one."""
    short = [_NUMBER.sub(_rounded, name) for name in names]
    return short if len(set(short)) == len(set(names)) else names


def write_summary(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows of `RunRecord.summary` as CSV, in full precision."""
    with atomic(file) as temporary:
        temporary.write_text(csv_text(pd.DataFrame(list(rows))), encoding="utf-8")


def percent(share: float | None) -> str:
    """A share in percent to one decimal; a dash for None or NaN."""
    return "–" if pd.isna(share) else f"{100 * share:.1f}"


def summarize_sweep(folder: Path, earlier: Mapping[Path, int] | None = None) -> None:
    """Prints the scores of a sweep's jobs, and writes them to `summary.csv` in its folder.

    Args:
        folder: The sweep's folder, which may hold jobs of other sweeps too.
        earlier: What `finished_jobs` gave before the sweep; jobs that did not end again are left out.
    """
    written = finished_jobs(folder).items() - (earlier or {}).items()
    files = sorted((file for file, _ in written), key=lambda file: (len(file.parent.name), file))
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
