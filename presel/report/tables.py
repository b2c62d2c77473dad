"""The table of a report, in Markdown, LaTeX and CSV."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from presel.console.escaping import markdown_text, visible
from presel.evaluation.scores import benchmark_column
from presel.report.grouping import counterpart
from presel.report.published import (
    PUBLISHED_BUDGET,
    PUBLISHED_TABLES,
    published_hours,
    published_relative,
)
from presel.report.statistics import compare, holm, spread
from presel.report.summary import percent
from presel.runs import RunRecord
from presel.settings.usage import sets_any_of

# What the others are compared with, and what Rel. is relative to.
BASELINE = "random"
WHOLE_POOL = "full"
# Groups of which published tables show one setting.
_PUBLISHED_ONCE = ("irs", "tau", "neighbors", "cluster", "allocation", "reference")
# Columns that are fields of `Comparison`.
_COMPARED = ("difference", "low", "high", "t_low", "t_high", "p")


def results(groups: Mapping[str, Sequence[RunRecord]], published: Sequence[str]) -> pd.DataFrame:
    """Summarizes each setting in one row of numbers; shares and scores from 0 to 1.

    Args:
        groups: Runs of each setting, one per seed, as `by_setting` gives them.
        published: Published tables to take Rel. from, keys of `PUBLISHED_TABLES`.

    Returns:
        One row per setting: setting, seeds, requested, requested_first and validation_samples (see
        `RunRecord`), instructions (their number), mean, mean_sd, relative, relative_sd, relative_seeds
        (seeds that were run on the full pool too); compared with random selection under the same conditions,
        if that was run (see `counterpart`): difference, low, high, t_low, t_high, p, common_seeds, p_holm (p
        adjusted for the number of rows compared), seeds_won and benchmarks_won (see `Comparison`);
        selection_seconds, tuning_seconds; compared with the full pool, if that was run:
        seconds_of_full (the sum of both times as a share of the full pool's) and prism_cost (see
        `_prism_cost`); Rel. in each published table, as published_NAME; from PreSel's Table 4
        published_selection_hours and published_tuning_hours.
    """
    relative_published, hours = {name: published_relative(name) for name in published}, published_hours()
    rows = []
    for name, runs in groups.items():
        relative = [run.relative for run in runs if run.relative is not None]
        row: dict[str, Any] = {
            "setting": name,
            "seeds": len(runs),
            "requested": float(np.mean([run.requested for run in runs])),
            "requested_first": float(np.mean([run.requested_first for run in runs])),
            "validation_samples": runs[0].validation_samples,
            "instructions": float(np.mean([run.requested * len(run.selection) for run in runs])),
            "mean": float(np.mean([run.mean for run in runs])),
            "mean_sd": spread([run.mean for run in runs]),
            "relative": float(np.mean(relative)) if relative else None,
            "relative_sd": spread(relative),
            "relative_seeds": len(relative),
        }
        is_baseline = runs[0].strategy == BASELINE
        comparison = None if is_baseline else compare(runs, counterpart(runs, BASELINE, groups))
        if comparison is not None:
            row |= {field: getattr(comparison, field) for field in _COMPARED}
            row |= {
                "common_seeds": comparison.seeds,
                # Filled below, when all rows are known.
                "p_holm": None,
                "seeds_won": f"{comparison.seeds_won}/{comparison.seeds}",
                "benchmarks_won": f"{comparison.benchmarks_won}/{comparison.benchmarks}",
            }
        seconds = float(np.mean([run.seconds for run in runs]))
        whole = counterpart(runs, WHOLE_POOL, groups)
        row |= {
            "selection_seconds": float(np.mean([run.selection_seconds for run in runs])),
            "tuning_seconds": float(np.mean([run.tuning_seconds for run in runs])),
            "seconds_of_full": seconds / float(np.mean([run.seconds for run in whole])) if whole else None,
            "prism_cost": _prism_cost(runs, whole),
        }
        known = name if _is_published(runs[0]) else ""
        row |= {column_of(table): relative.get(known) for table, relative in relative_published.items()}
        row["published_selection_hours"], row["published_tuning_hours"] = hours.get(known, (None, None))
        rows.append(row)
    tested = [row for row in rows if row.get("p") is not None]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    return pd.DataFrame(rows)


def scores(groups: Mapping[str, Sequence[RunRecord]]) -> pd.DataFrame:
    """Mean scores over seeds, from 0 to 1: a row for each row of `results`, a column for each benchmark."""
    return pd.DataFrame([pd.DataFrame([run.scores for run in runs]).mean() for runs in groups.values()])


def all_columns(results: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Joins `results` and `scores`."""
    return results.join(scores.rename(columns=lambda name: benchmark_column(name, results.columns)))


def of_runs(groups: Mapping[str, Sequence[RunRecord]]) -> pd.DataFrame:
    """What `results` summarizes, one row per run, so that others can compute statistics of their own.

    Args:
        groups: Runs of each setting, one per seed, as `by_setting` gives them.

    Returns:
        Columns setting, seed, requested, requested_first, mean, relative, selection_seconds,
        tuning_seconds, and one for each benchmark; shares and scores from 0 to 1.
    """
    everything = [(name, run) for name, runs in groups.items() for run in runs]
    rows = [
        {
            "setting": name,
            "seed": run.seed,
            "requested": run.requested,
            "requested_first": run.requested_first,
            "mean": run.mean,
            "relative": run.relative,
            "selection_seconds": run.selection_seconds,
            "tuning_seconds": run.tuning_seconds,
        }
        for name, run in everything
    ]
    return all_columns(pd.DataFrame(rows), pd.DataFrame([run.scores for _, run in everything]))


def _is_published(run: RunRecord) -> bool:
    """Whether a run has the settings of published tables: the strategy's own, at 15 % or all of the pool."""
    return round(run.budget, 2) in (PUBLISHED_BUDGET, 1) and not any(
        override.lstrip("+").startswith("strategy.") or sets_any_of(override, _PUBLISHED_ONCE)
        for override in run.overrides
        if not sets_any_of(override, run.unused)
    )


def column_of(published: str) -> str:
    """The column of `results` with Rel. in a published table."""
    return f"published_{published}"


def _prism_cost(runs: Sequence[RunRecord], whole: Sequence[RunRecord]) -> float | None:
    """Cost measure C of PRISM (arXiv 2502.12119): what selection and tuning cost for what they achieve.

    C = P_full / P_sub * (T_select + T_tune,sub) / T_tune,full, where P is the mean score and T a time, each
    averaged over the runs. Tuning on the full pool has C = 1, so that selection saves time only below 1.

    Args:
        runs: Runs of a setting.
        whole: Their counterparts on the full pool.

    Returns:
        None without such counterparts, or where the selection's mean score is 0.
    """
    score = float(np.mean([run.mean for run in runs]))
    if not whole or not score:
        return None
    gain = float(np.mean([run.mean for run in whole])) / score
    seconds = float(np.mean([run.seconds for run in runs]))
    return gain * seconds / float(np.mean([run.tuning_seconds for run in whole]))


def formatted(table: pd.DataFrame, scores: pd.DataFrame, published: Sequence[str]) -> pd.DataFrame:
    """Formats `results` and `scores` for printing, in percent; what one compares first stands left."""
    return all_columns(_compared(table), scores.map(percent)).join(_published(table, published))


def in_parts(table: pd.DataFrame, scores: pd.DataFrame, published: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Formats the same in two tables for a page, which cannot scroll sideways: results, then benchmarks.

    The comparison with random selection stands beside the names.
    """
    shown = _compared(table)
    last = ["requested", "read first", "seeds"]
    first = ["setting", *(name for name in (f"against {BASELINE}", "p (Holm)") if name in shown)]
    rest = [name for name in shown if name not in (*first, *last)]
    by_benchmark = all_columns(shown[["setting"]], scores.map(percent))
    return {
        "Results": shown[[*first, *rest, *last]],
        "By benchmark": by_benchmark.join(_published(table, published)),
    }


def _compared(table: pd.DataFrame) -> pd.DataFrame:
    shown = pd.DataFrame({"setting": table["setting"], "seeds": table["seeds"].astype(str)})
    shown["requested"] = table["requested"].map(percent)
    shown["read first"] = [
        percent(share) + (f" + {besides} labeled" if besides else "")
        for share, besides in zip(table["requested_first"], table["validation_samples"], strict=True)
    ]
    shown["mean"] = _with_spread(table, "mean")
    shown["Rel."] = [
        text if known in (0, seeds) else f"{text} ({known} of {seeds} seeds)"
        for text, known, seeds in zip(
            _with_spread(table, "relative"), table["relative_seeds"], table["seeds"], strict=True
        )
    ]
    if "difference" in table:
        shown[f"against {BASELINE}"] = [
            "" if pd.isna(difference) else f"{100 * difference:+.1f} {_interval(low, high)}".strip()
            for difference, low, high in zip(table["difference"], table["low"], table["high"], strict=True)
        ]
        shown["paired t"] = [
            _interval(low, high) for low, high in zip(table["t_low"], table["t_high"], strict=True)
        ]
        shown["p (Holm)"] = [_p_value(p) for p in table["p_holm"]]
        shown["seeds won"] = table["seeds_won"].fillna("")
        shown["benchmarks won"] = table["benchmarks_won"].fillna("")
    return shown


def _published(table: pd.DataFrame, published: Sequence[str]) -> pd.DataFrame:
    """Rel. in the published tables that have one of the strategies."""
    return pd.DataFrame(
        {
            f"Rel. in {PUBLISHED_TABLES[name].title}": table[column_of(name)].map(percent)
            for name in published
            if table[column_of(name)].notna().any()
        },
        index=table.index,
    )


def selections(groups: Mapping[str, Sequence[RunRecord]]) -> pd.DataFrame:
    """Formats what each setting chose, for runs that ended with the selection."""
    rows = []
    for name, runs in groups.items():
        chosen = [len(run.chosen) for run in runs]
        rows.append(
            {
                "setting": name,
                "seeds": str(len(runs)),
                "images": f"{np.mean(chosen):,.0f}",
                "% of the pool": percent(float(np.mean(chosen)) / len(runs[0].selection)),
                "read first": percent(float(np.mean([run.requested_first for run in runs]))),
            }
        )
    return pd.DataFrame(rows)


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """Formats the costs in `results` for printing; times are those of one run that reuses nothing."""
    selection, tuning = table["selection_seconds"], table["tuning_seconds"]
    shown = pd.DataFrame({"setting": table["setting"]})
    shown["instructions"] = table["instructions"].map(lambda number: f"{number:,.0f}")
    shown["requested"] = table["requested"].map(percent)
    for name, seconds in {"selection": selection, "tuning": tuning, "together": selection + tuning}.items():
        shown[name] = seconds.map(lambda value: f"{value:.0f} s")
    if table["seconds_of_full"].notna().any():
        shown["of the full pool's"] = table["seconds_of_full"].map(percent)
    if table["prism_cost"].notna().any():
        shown["C (PRISM)"] = table["prism_cost"].map(lambda cost: "–" if pd.isna(cost) else f"{cost:.2f}")
    shown["Rel."] = table["relative"].map(percent)
    if table["published_tuning_hours"].notna().any():
        hours = zip(table["published_selection_hours"], table["published_tuning_hours"], strict=True)
        shown["GPU hours in PreSel's Table 4"] = [
            "–" if pd.isna(tuned) else f"{selected:.1f} + {tuned:.1f}" for selected, tuned in hours
        ]
    return shown


def markdown(shown: pd.DataFrame) -> str:
    """Formats a table of strings as Markdown."""
    rows = [list(shown.columns), ["---"] + ["---:"] * (shown.shape[1] - 1), *shown.to_numpy().tolist()]
    cells = [[markdown_text(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def latex(shown: pd.DataFrame) -> str:
    """Formats a table of strings as LaTeX with booktabs rules."""
    # pandas escapes LaTeX commands, but not control characters.
    escaped = shown.rename(columns=visible).map(visible).replace({"–": "--"})
    return escaped.to_latex(index=False, escape=True, column_format="l" + "r" * (shown.shape[1] - 1))


def _interval(low: float | None, high: float | None) -> str:
    return "" if pd.isna(low) or pd.isna(high) else f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def _p_value(p: float | None) -> str:
    if pd.isna(p):
        return ""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _with_spread(table: pd.DataFrame, name: str) -> list[str]:
    pairs = zip(table[name], table[f"{name}_sd"], strict=True)
    return [percent(value) + ("" if pd.isna(sd) else f" ± {100 * sd:.1f}") for value, sd in pairs]
