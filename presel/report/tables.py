"""The table of a report, in Markdown, LaTeX and CSV."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from presel.console.escaping import markdown_text, visible
from presel.report.grouping import counterpart
from presel.report.statistics import compare, holm, spread
from presel.report.summary import percent
from presel.runs import RunRecord
from presel.storage.files import read_json

PUBLISHED = "paper_results.json"
# Each with its place in the file.
PUBLISHED_TABLES = {
    "table1_llava665k": ("table1_llava665k",),
    "table2_vision_flan": ("table2_vision_flan",),
    "table3_vicuna_13b": ("table3_architectures", "vicuna-13b"),
    "table3_llama_3_8b": ("table3_architectures", "llama-3-8b"),
}
_PUBLISHED_BUDGET = 0.15
# What the others are compared with, and what Rel. is relative to.
BASELINE = "random"
WHOLE_POOL = "full"
# Columns that are fields of `Comparison`.
_COMPARED = ("difference", "low", "high", "t_low", "t_high", "p")


def results(groups: Mapping[str, Sequence[RunRecord]], published: str) -> pd.DataFrame:
    """Summarizes each setting in one row of numbers; shares and scores from 0 to 1.

    Args:
        groups: Runs of each setting, one per seed, as `by_setting` gives them.
        published: A table of the paper, such as `table1_llava665k`, to take published Rel. from.

    Returns:
        One row per setting: setting, seeds, requested, instructions (their number), a column for each
        benchmark, mean, mean_sd, relative, relative_sd, relative_seeds (seeds that were run on the full pool
        too); compared with random selection under the same conditions, if that was run (see `counterpart`):
        difference, low, high, t_low, t_high, p, p_holm (p adjusted for the number of rows compared),
        seeds_won and benchmarks_won (see `Comparison`); selection_seconds, tuning_seconds, seconds_of_full
        (their sum as a share of the full pool's); published, and from the paper's Table 4
        published_selection_hours and published_tuning_hours.
    """
    relative_published, hours = published_relative(published), published_hours()
    rows = []
    for name, runs in groups.items():
        relative = [run.relative for run in runs if run.relative is not None]
        row: dict[str, Any] = {
            "setting": name,
            "seeds": len(runs),
            "requested": float(np.mean([run.requested for run in runs])),
            "instructions": float(np.mean([run.requested * len(run.selection) for run in runs])),
        }
        for benchmark in runs[0].scores:
            row[benchmark] = float(np.mean([run.scores[benchmark] for run in runs]))
        row |= {
            "mean": float(np.mean([run.mean for run in runs])),
            "mean_sd": spread([run.mean for run in runs]),
            "relative": float(np.mean(relative)) if relative else None,
            "relative_sd": spread(relative),
            "relative_seeds": len(relative),
        }
        is_baseline = runs[0].strategy == BASELINE
        comparison = None if is_baseline else compare(runs, counterpart(runs, BASELINE, groups))
        if comparison is not None:
            row |= {name: getattr(comparison, name) for name in _COMPARED}
            row |= {
                # Filled below, when all rows are known.
                "p_holm": None,
                "seeds_won": f"{comparison.seeds_won}/{comparison.seeds}",
                "benchmarks_won": f"{comparison.benchmarks_won}/{comparison.benchmarks}",
            }
        seconds = float(np.mean([run.seconds for run in runs]))
        whole = [run.seconds for run in counterpart(runs, WHOLE_POOL, groups)]
        row |= {
            "selection_seconds": float(np.mean([run.selection_seconds for run in runs])),
            "tuning_seconds": float(np.mean([run.tuning_seconds for run in runs])),
            "seconds_of_full": seconds / float(np.mean(whole)) if whole else None,
        }
        # The paper has these only for a strategy's own settings, at its budget or on the whole pool.
        known = name if round(runs[0].budget, 2) in (_PUBLISHED_BUDGET, 1) else ""
        row["published"] = relative_published.get(known)
        row["published_selection_hours"], row["published_tuning_hours"] = hours.get(known, (None, None))
        rows.append(row)
    tested = [row for row in rows if row.get("p") is not None]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    return pd.DataFrame(rows)


def published_relative(table: str) -> dict[str, float]:
    """Rel. of each strategy in a table of the paper, a key of `PUBLISHED_TABLES`; from 0 to 1."""
    return {row["method"]: row["relative"] / 100 for row in _published(*PUBLISHED_TABLES[table])}


def published_hours() -> dict[str, tuple[float, float]]:
    """GPU hours of selection and of tuning in the paper's Table 4, by strategy."""
    return {
        row["method"]: (row["selection_gpu_hours"] or 0.0, row["finetune_gpu_hours"])
        for row in _published("table4_cost")
    }


def _published(*place: str) -> list[dict[str, Any]]:
    found: Any = read_json(Path(str(files("presel") / "assets" / PUBLISHED)))["tables"]
    for name in place:
        found = found[name]
    rows: list[dict[str, Any]] = found
    return rows


def formatted(table: pd.DataFrame, benchmarks: Sequence[str]) -> pd.DataFrame:
    """Formats the numbers of `results` for printing, in percent."""
    shown = pd.DataFrame({"setting": table["setting"], "seeds": table["seeds"].astype(str)})
    shown["requested"] = table["requested"].map(percent)
    for benchmark in benchmarks:
        shown[benchmark] = table[benchmark].map(percent)
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
    if table["published"].notna().any():
        shown["Rel. in the paper"] = table["published"].map(percent)
    return shown


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
    shown["Rel."] = table["relative"].map(percent)
    if table["published_tuning_hours"].notna().any():
        hours = zip(table["published_selection_hours"], table["published_tuning_hours"], strict=True)
        shown["GPU hours in the paper"] = [
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
