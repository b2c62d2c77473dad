"""A page's first lines: what came out, and how sure it is."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from presel.report.grouping import settings_with
from presel.report.spending import TaskSpending
from presel.report.summary import percent
from presel.report.tables import BASELINE, WHOLE_POOL
from presel.runs import RunRecord

# Significance level of differences from random selection, adjusted for the number of strategies (Holm).
_LEVEL = 0.05
# Seeds from which on a t interval says something.
_FEW_SEEDS = 3


def on_selection(name: str, run: RunRecord, tasks: Sequence[TaskSpending]) -> list[str]:
    """Says what a run chose, where most of it went, and how sure the tasks' IRS are."""
    total, chosen = len(run.selection), len(run.chosen)
    share = percent(chosen / total)
    what = f"{name} chose {chosen:,} of {total:,} images ({share} %) in {_number(len(tasks), 'task')}"
    if reference := len(run.reference_ids & set(run.chosen["id"])):
        what += f", {reference:,} of them at random as the reference set"
    return [what + ".", *_where(tasks), *_how_sure_relevance(tasks)]


def _where(tasks: Sequence[TaskSpending]) -> list[str]:
    """Which tasks get most and least for their size, where the strategy weighs tasks."""
    if len(tasks) < 2 or tasks[0].weight is None:
        return []
    shares = [task.share / task.pool_share for task in tasks]
    if max(shares) - min(shares) < 0.01:
        return ["Every task gets its share of the pool."]
    most, least = (
        f"{task.task} ({percent(task.share)} % of the choice, {percent(task.pool_share)} % of the pool)"
        for task in (tasks[0], tasks[-1])
    )
    return [f"For its size, most goes to {most}, least to {least}."]


def _how_sure_relevance(tasks: Sequence[TaskSpending]) -> list[str]:
    """Whether the tasks' mean IRS differ by more than their standard errors."""
    measured = [task for task in tasks if np.isfinite(task.error)]
    if len(measured) < 2:
        return []
    mean = np.mean([task.irs for task in measured])
    apart = sum(abs(task.irs - mean) > 2 * task.error for task in measured)
    samples = sum(task.samples for task in measured)
    return [
        f"Of {samples:,} reference samples, the mean IRS of {apart} of {len(measured)} tasks is more than "
        "two standard errors from the mean of all; that of the others could be chance."
    ]


def on_untuned(runs: Sequence[RunRecord]) -> str:
    """Says what a choice alone cannot tell."""
    whose = "this choice" if len(runs) == 1 else "these choices"
    return (
        f"No model was tuned on {whose}, so nothing here says whether scores would be better than with as "
        "many random images. That takes runs with until=evaluation, several seeds, and strategy=random too."
    )


def on_results(groups: Mapping[str, Sequence[RunRecord]], results: pd.DataFrame) -> list[str]:
    """Says which settings differ from random selection, and how sure that is."""
    seeds = sorted({run.seed for runs in groups.values() for run in runs})
    sizes = sorted({len(run.selection) for runs in groups.values() for run in runs})
    pools = f"a pool of {sizes[0]:,} images" if len(sizes) == 1 else "several pools"
    said = [f"{_number(len(groups), 'setting')} on {pools}, {_seeds(seeds)}."]
    if "difference" not in results:
        missing = f"no runs of strategy={BASELINE}"
        if settings_with(BASELINE, groups):
            missing += " share their budget, conditions and a seed"
        return [*said, f"Not compared with {BASELINE} selection: {missing}."]
    compared = results[
        results["difference"].notna() & ~results["setting"].isin(settings_with(WHOLE_POOL, groups))
    ]
    known = compared[compared["p_holm"].notna() & (compared["common_seeds"] >= _FEW_SEEDS)]
    sure = known[known["p_holm"] < _LEVEL]
    for rows, better in ((sure[sure["difference"] > 0], "better"), (sure[sure["difference"] < 0], "worse")):
        if len(rows):
            said.append(f"Significantly {better} than {BASELINE} selection: {_differences(rows)}.")
    unsure = known[known["p_holm"] >= _LEVEL]
    if len(unsure):
        said.append(f"Not significantly different from {BASELINE} selection: {_differences(unsure)}.")
    few = compared[~compared["setting"].isin(known["setting"])]
    if len(few):
        said.append(
            f"Too few seeds to test these differences from {BASELINE} selection: {_differences(few)}."
        )
    return said


def _differences(rows: pd.DataFrame) -> str:
    """Settings with their difference from random selection, the largest first."""
    said = []
    for row in rows.sort_values("difference", ascending=False, kind="stable").to_dict("records"):
        between = (
            ""
            if pd.isna(row["t_low"])
            else f", 95 % interval {100 * row['t_low']:+.1f} to {100 * row['t_high']:+.1f}"
        )
        said.append(f"{row['setting']} ({100 * row['difference']:+.1f} points{between})")
    return ", ".join(said)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
