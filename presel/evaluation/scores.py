"""The table at the end: strategies by benchmarks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from presel.console import console
from presel.console.escaping import csv_text
from presel.storage.files import atomic

Scores = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: Strategy, or what the row is measured on.
        scores: Score by benchmark, 0 to 1.
        relative: Rel.: mean over benchmarks of score over the full pool's score, or None if unknown.
        requested: Share of the pool whose instructions were requested, by the ledger; None where
            nothing was chosen.
        seconds: Time that everything behind the row took when it was computed, or None.
    """

    name: str
    scores: Scores
    relative: float | None = None
    requested: float | None = None
    seconds: float | None = None

    @property
    def mean(self) -> float:
        """Unweighted mean over the benchmarks."""
        return mean_score(self.scores)


def mean_score(scores: Scores) -> float:
    """Unweighted mean over the benchmarks."""
    return sum(scores.values()) / len(scores)


def relative_score(scores: Scores, full: Scores) -> float | None:
    """Rel.: unweighted mean over benchmarks of score / score of the model tuned on the full pool.

    None where the full model scores 0 on a benchmark, since the ratio does not exist there.
    """
    if not all(full.values()):
        return None
    return sum(scores[name] / full[name] for name in full) / len(full)


def print_table(rows: Sequence[Row]) -> None:
    """Prints rows, scores and shares in per cent."""
    table = Table(
        title="Scores (%), greedy generation on held-out benchmarks",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    # In the order in which the rows name them; a sweep over benchmarks has rows without some.
    benchmarks = list(dict.fromkeys(name for row in rows for name in row.scores))
    table.add_column("strategy", no_wrap=True)
    for name in [*benchmarks, "mean", "Rel. %", "requested %", "time"]:
        table.add_column(name, justify="right")
    for row in rows:
        scores = [percent(row.scores.get(name)) for name in benchmarks]
        time = "–" if row.seconds is None else f"{row.seconds:.0f} s"
        table.add_row(
            row.name, *scores, f"{100 * row.mean:.1f}", percent(row.relative), percent(row.requested), time
        )
    console.print(table)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows with their full precision."""
    flat = []
    for row in rows:
        fields = asdict(row)
        scores = fields.pop("scores")
        flat.append({"strategy": fields.pop("name"), **scores, "mean": row.mean, **fields})
    with atomic(path) as temporary:
        temporary.write_text(csv_text(pd.DataFrame(flat)), encoding="utf-8")


def percent(share: float | None) -> str:
    """A share in per cent to one decimal; a dash for None or NaN."""
    return "–" if pd.isna(share) else f"{100 * share:.1f}"
