"""The notes under a report's table: what one must know to read its rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from presel.report.grouping import counterpart, settings_with
from presel.report.published import PUBLISHED_TABLES
from presel.report.statistics import rank_correlation, spread
from presel.report.tables import BASELINE, WHOLE_POOL, column_of
from presel.runs import RunRecord

# Seeds behind each row of the paper's tables.
_ENOUGH_SEEDS = 5
# Of fewer strategies not even identical orders are significant: with four, p = 2/4! = 0.08 (two-sided).
_ENOUGH_STRATEGIES = 5
_INTERVALS = (
    f"In brackets 95 % intervals of the difference: against {BASELINE} by a paired bootstrap over "
    "seeds and questions; paired t over seeds alone, whose p is adjusted for the table's rows (Holm). "
    "Both are conditional on one pool, one draw of benchmarks, one base model and one seed of k-means."
)
_LABELED = (
    "Labeled: held-out samples of target tasks, outside the pool, whose answers the strategy read before it "
    "selected. The ledger does not count them."
)
_TEXT_ONLY = (
    "Also tuned on the pool's records without an image (pool.text_only=keep), which cost nothing and are in "
    "no budget."
)


def notes_on(
    groups: Mapping[str, Sequence[RunRecord]], results: pd.DataFrame, published: Sequence[str]
) -> list[str]:
    """Writes all notes.

    Args:
        groups: Runs of each setting, one per seed, as `by_setting` gives them.
        results: Their results, from `presel.report.tables.results`.
        published: The published tables beside them, keys of `PUBLISHED_TABLES`.
    """
    return [
        *([_INTERVALS] if "difference" in results else []),
        *([_LABELED] if any(runs[0].validation_samples for runs in groups.values()) else []),
        *([_TEXT_ONLY] if any("text_only" in runs[0].stages for runs in groups.values()) else []),
        *_verdicts(groups),
        *_few_seeds(groups),
        *_no_relative(groups, results),
        *_rank_agreement(groups, results, published),
    ]


def _verdicts(groups: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """States whether the spread over seeds is small enough to distinguish strategies."""
    notes = []
    for name, runs in groups.items():
        whole = counterpart(runs, WHOLE_POOL, groups)
        noise = spread([run.mean for run in runs])
        if runs[0].strategy != BASELINE or not whole or noise is None:
            continue
        gap = float(np.mean([run.mean for run in whole]) - np.mean([run.mean for run in runs]))
        if gap <= 0:
            notes.append(
                f"The spread of {name} over seeds is {100 * noise:.2f}; the full pool scores no higher, so "
                "that there is no distance to measure it against."
            )
            continue
        share, ability = ("at most", "can") if noise <= gap / 3 else ("above", "is too noisy to")
        notes.append(
            f"The spread of {name} over seeds is {100 * noise:.2f}, {share} a third of its distance to the "
            f"full pool, {100 * gap:.2f}: the evaluation {ability} tell strategies apart."
        )
    return notes


def _few_seeds(groups: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """Names rows with few seeds, those compared on some seeds only, and those without a baseline."""
    few = [f"{name} ({len(runs)})" for name, runs in groups.items() if len(runs) < _ENOUGH_SEEDS]
    notes = [f"Fewer than {_ENOUGH_SEEDS} seeds: {', '.join(few)}."] if few else []
    if not any(runs[0].strategy == BASELINE for runs in groups.values()):
        return notes
    alone, partly, fewer = [], [], []
    for name, runs in groups.items():
        if runs[0].strategy == BASELINE:
            continue
        seeds = {run.seed for run in runs}
        baseline = {run.seed for run in counterpart(runs, BASELINE, groups)}
        common = seeds & baseline
        if not common:
            alone.append(name)
        elif common < seeds:
            partly.append(f"{name} ({len(common)} of {len(seeds)})")
        elif common < baseline:
            fewer.append(f"{name} ({len(common)} of {len(baseline)})")
    if partly:
        notes.append(f"Compared with {BASELINE} on common seeds only: {', '.join(partly)}.")
    if fewer:
        notes.append(
            f"Compared with {BASELINE} on some of its seeds, so that the difference need not be that of "
            f"the means shown: {', '.join(fewer)}."
        )
    if alone:
        notes.append(f"Without {BASELINE} of the same budget, conditions and seeds: {', '.join(alone)}.")
    return notes


def _no_relative(groups: Mapping[str, Sequence[RunRecord]], results: pd.DataFrame) -> list[str]:
    """Says why no setting has a Rel., if so."""
    if "relative" not in results or results["relative"].notna().any():
        return []
    whole = settings_with(WHOLE_POOL, groups)
    if not whole:
        return [f"No Rel.: there are no runs of strategy={WHOLE_POOL}."]
    zero = sorted(
        {
            name
            for setting in whole
            for run in groups[setting]
            for name, score in run.scores.items()
            if not score
        }
    )
    return [f"No Rel.: the full pool's model scores 0 on {', '.join(zero)}."] if zero else []


def _rank_agreement(
    groups: Mapping[str, Sequence[RunRecord]], results: pd.DataFrame, published: Sequence[str]
) -> list[str]:
    """States how far the order of the strategies agrees with that in each published table."""
    notes = []
    # Rel. of the full pool is 100 in every table.
    selected = results[~results["setting"].isin(settings_with(WHOLE_POOL, groups))]
    for name in published:
        both = selected[["relative", column_of(name)]].dropna().to_numpy(float)  # (strategies, 2)
        if len(both) < 2:
            continue
        compared = f"mean Rel. with Rel. in {PUBLISHED_TABLES[name].title} (strategies in both: {len(both)})"
        if len(both) < _ENOUGH_STRATEGIES:
            notes.append(f"Rank correlation of {compared} is not given: too few strategies.")
        else:
            notes.append(f"Spearman's rank correlation of {compared}: {rank_correlation(*both.T):+.2f}.")
    return notes
