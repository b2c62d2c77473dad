"""What a run spends where, and why: tasks with their weights and IRS, requested instructions, time."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup

from presel.importance import relevance_scores
from presel.instructions.ledger import COSTS, LEDGER
from presel.report.columns import with_numbers
from presel.report.summary import percent
from presel.runs import RunRecord
from presel.storage.files import read_table

# Pixels of the drawing of a distribution.
_WIDTH, _HEIGHT = 220, 18
_LEDGER_COLUMNS = ["id", "stage", "tokens", "money"]


@dataclass(frozen=True)
class TaskSpending:
    """What one task gets.

    Attributes:
        task: Its name.
        images: Its images in the pool.
        chosen: Those chosen, the reference set included.
        pool_share: Its share of the pool.
        share: Its share of the choice.
        weight: Its weight (eq. 5), None where the strategy has none.
        samples: Reference samples with an IRS, 0 where none was measured.
        irs: Mean IRS (eq. 4).
        error: Standard error of that mean; NaN for fewer than two samples.
        drawing: The distribution of the IRS, as SVG.
    """

    task: str
    images: int
    chosen: int
    pool_share: float
    share: float
    weight: float | None
    samples: int
    irs: float
    error: float
    drawing: Markup


def spending(run: RunRecord) -> list[TaskSpending]:
    """What every task gets, those first that get most for their size."""
    table = with_numbers(run.selection)
    irs = _irs(run)
    low, high = np.quantile(np.concatenate([*irs.values(), [1.0]]), [0.01, 0.99])
    rows = []
    for task, images in table.groupby("task"):
        scores = irs.get(str(task), np.empty(0))
        chosen = int(images["selected"].sum())
        rows.append(
            TaskSpending(
                task=str(task),
                images=len(images),
                chosen=chosen,
                pool_share=len(images) / len(table),
                share=chosen / int(table["selected"].sum()),
                weight=float(images["task_weight"].iloc[0]) if "task_weight" in images else None,
                samples=len(scores),
                irs=float(scores.mean()) if len(scores) else np.nan,
                error=float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else np.nan,
                drawing=_box(scores, min(low, 1), max(high, 1)) if len(scores) else Markup(),
            )
        )
    return sorted(rows, key=lambda row: (-row.share / row.pool_share, row.task))


def _irs(run: RunRecord) -> dict[str, npt.NDArray[np.float64]]:
    """The IRS (eq. 3) of every task's reference samples, where the run measured it."""
    losses = run.relevance
    if losses is None:
        return {}
    scores = relevance_scores(losses["loss_with_question"], losses["loss_without_question"])
    by_task = pd.Series(scores).groupby(losses["task"].to_numpy())
    return {str(task): np.asarray(one.dropna(), dtype=np.float64) for task, one in by_task}


def _box(scores: npt.NDArray[np.float64], low: float, high: float) -> Markup:
    """Draws the middle half of the scores, their median, the 5th to 95th percentile, and a line at 1."""
    ends = np.clip(np.quantile(scores, [0.05, 0.25, 0.5, 0.75, 0.95]), low, high)
    first, second, median, third, last, one = (
        f"{2 + (_WIDTH - 4) * (value - low) / ((high - low) or 1):.1f}" for value in (*ends, 1)
    )
    middle = _HEIGHT / 2
    return Markup(
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="median {ends[2]:.2f}, half of the scores from {ends[1]:.2f} to {ends[3]:.2f}">'
        f'<path class="one" d="M{one} 0V{_HEIGHT}"/><path class="range" d="M{first} {middle}H{last}"/>'
        f'<path class="half" d="M{second} {middle}H{third}"/>'
        f'<path class="median" d="M{median} 3V{_HEIGHT - 3}"/>'
        "</svg>"
    )


def requests(run: RunRecord) -> pd.DataFrame:
    """Who requested how many instructions, by the ledgers, and what was billed for them; for printing."""
    ledgers = [_ledger(stage.verified) for stage in run.stages.values() if stage.name == "instructions"]
    # An image that is in several keeps the stage that requested it first.
    ledger = pd.concat(ledgers).drop_duplicates("id") if ledgers else pd.DataFrame(columns=_LEDGER_COLUMNS)
    table = ledger.groupby("stage", sort=False).agg(
        instructions=("id", "size"), tokens=("tokens", "sum"), money=("money", "sum")
    )
    planned = len(set(run.chosen["id"]) - set(ledger["id"]))
    if planned:
        table.loc["still to be requested for the selection"] = [planned, 0, 0]
    table.loc["all"] = table.sum()
    shown = pd.DataFrame({"requested for": table.index})
    shown["instructions"] = [f"{number:,.0f}" for number in table["instructions"]]
    shown["% of the pool"] = [percent(number / len(run.selection)) for number in table["instructions"]]
    if table["tokens"].any():
        shown["tokens"] = [f"{number:,.0f}" for number in table["tokens"]]
    if table["money"].any():
        shown["money"] = [f"{amount:,.4g}" for amount in table["money"]]
    return shown


def _ledger(folder: Path) -> pd.DataFrame:
    """Id, stage, tokens and money of each image that a stage requested; no amounts if it was free."""
    ledger = read_table(folder / LEDGER, "id", "stage")
    if (folder / COSTS).exists():
        ledger = ledger.merge(read_table(folder / COSTS, "id", "tokens", "money"), on="id", how="left")
    return ledger.reindex(columns=_LEDGER_COLUMNS)


def times(run: RunRecord) -> pd.DataFrame:
    """How long every stage took, as if none had been reused, ready for printing."""
    rows = [(stage.label, f"{stage.manifest['wall_seconds']:,.1f} s") for stage in run.stages.values()]
    return pd.DataFrame(rows, columns=["stage", "time"])
