"""`presel report`: tables, figures and one page over many runs."""

import argparse
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Template

from presel.console import ArgumentParser, console
from presel.console.escaping import csv_text, markdown_text, visible
from presel.report import tables
from presel.report.gallery import gallery
from presel.report.grouping import by_setting, counterpart, evaluated, find_runs, left_out
from presel.report.statistics import spread
from presel.runs import RunRecord
from presel.storage.files import atomic

# Seeds behind each row of the paper's tables.
_ENOUGH_SEEDS = 5
_INTERVALS = (
    f"In brackets 95 % intervals of the difference: against {tables.BASELINE} by a paired bootstrap over "
    "seeds and questions; paired t over seeds alone, whose p is adjusted for the table's rows (Holm). "
    "Both are conditional on one pool, one draw of benchmarks, one base model and one seed of k-means."
)


def main(arguments: Sequence[str]) -> int:
    """Runs `presel report`."""
    parser = ArgumentParser(
        prog="presel report",
        description="Compare runs: mean and spread over seeds, intervals against random selection, costs.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs or sweeps")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="folder (%(default)s)")
    parser.add_argument("--title", default="Selection strategies", help="the page's heading")
    parser.add_argument(
        "--published",
        default="table1_llava665k",
        choices=tables.PUBLISHED_TABLES,
        help="the paper's table to show Rel. from (%(default)s)",
    )
    parser.add_argument(
        "--pictures", type=_count, default=8, help="images per row of the gallery (%(default)s)"
    )
    options = parser.parse_args(arguments)
    found = find_runs(options.runs)
    groups = by_setting(evaluated(found))
    results = tables.results(groups, options.published)
    benchmarks = dict.fromkeys(name for runs in groups.values() for run in runs for name in run.scores)
    shown = tables.formatted(results, list(benchmarks))
    costs = tables.costs(results)
    notes = [*_verdicts(groups), *_few_seeds(groups), *left_out(options.runs, found)]
    if "paired t" in shown:
        notes.insert(0, _INTERVALS)
    seeds = sorted({run.seed for runs in groups.values() for run in runs})
    drawn = _one_run_per_setting(groups)
    template = (files("presel.report") / "page.html").read_text(encoding="utf-8")
    page = Template(template, autoescape=True, finalize=_shown).render(
        title=options.title,
        summary=f"{len(groups)} settings, seeds {', '.join(map(str, seeds))}. Scores in percent, "
        "mean ± standard deviation over seeds.",
        tables={"": shown, "Costs": costs},
        notes=notes,
        figures=_figures(groups, drawn),
        gallery=gallery(drawn, options.pictures),
    )
    for name, text in {
        "report.html": page,
        "table.md": tables.markdown(shown) + "".join(f"\n{markdown_text(note)}\n" for note in notes),
        "table.tex": tables.latex(shown),
        "table.csv": csv_text(results),
        "costs.md": tables.markdown(costs),
        "costs.tex": tables.latex(costs),
    }.items():
        with atomic(options.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        console.print(options.out / name)
    return 0


def _shown(value: object) -> object:
    """Escapes control characters in the page's text; figures are `Markup` and stay as they are."""
    return visible(value) if type(value) is str else value


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _verdicts(groups: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """States whether the spread over seeds is small enough to distinguish strategies."""
    notes = []
    for name, runs in groups.items():
        whole = counterpart(runs, tables.WHOLE_POOL, groups)
        noise = spread([run.mean for run in runs])
        if runs[0].strategy != tables.BASELINE or not whole or noise is None:
            continue
        gap = float(np.mean([run.mean for run in whole]) - np.mean([run.mean for run in runs]))
        share, ability = ("at most", "can") if noise <= gap / 3 else ("above", "is too noisy to")
        notes.append(
            f"The spread of {name} over seeds is {100 * noise:.2f}, {share} a third of its distance to the "
            f"full pool, {100 * gap:.2f}: the evaluation {ability} tell strategies apart."
        )
    return notes


def _few_seeds(groups: Mapping[str, Sequence[RunRecord]]) -> list[str]:
    """Names rows with few seeds, and rows without a baseline to compare with."""
    few = [f"{name} ({len(runs)})" for name, runs in groups.items() if len(runs) < _ENOUGH_SEEDS]
    notes = [f"Fewer than {_ENOUGH_SEEDS} seeds: {', '.join(few)}."] if few else []
    if not any(runs[0].strategy == tables.BASELINE for runs in groups.values()):
        return notes
    alone, partly = [], []
    for name, runs in groups.items():
        seeds = {run.seed for run in runs}
        common = seeds & {run.seed for run in counterpart(runs, tables.BASELINE, groups)}
        if not common:
            alone.append(name)
        elif common < seeds:
            partly.append(f"{name} ({len(common)} of {len(seeds)})")
    if partly:
        notes.append(f"Compared with {tables.BASELINE} on common seeds only: {', '.join(partly)}.")
    if alone:
        notes.append(
            f"Without {tables.BASELINE} of the same budget, conditions and seeds: {', '.join(alone)}."
        )
    return notes


def _one_run_per_setting(groups: Mapping[str, Sequence[RunRecord]]) -> dict[str, RunRecord]:
    """One run per setting, with the lowest common seed; without a common seed, any, named with its seed."""
    common = set.intersection(*({run.seed for run in runs} for runs in groups.values()))
    if common:
        return {name: next(run for run in runs if run.seed == min(common)) for name, runs in groups.items()}
    return {f"{name}, seed {runs[0].seed}": runs[0] for name, runs in groups.items()}


def _figures(groups: Mapping[str, Sequence[RunRecord]], shown: Mapping[str, RunRecord]) -> dict[str, str]:
    # matplotlib takes a second to import.
    from presel.report import figures

    # Pools may give different images the same id.
    chosen = {
        name: {(run.stages["images"].key, image) for image in run.chosen["id"]} for name, run in shown.items()
    }
    weights, relevance = {}, {}
    for name, run in shown.items():
        if "task_weight" in run.selection:
            weights[name] = figures.task_weights(run.selection.groupby("task")["task_weight"].first())
        if run.relevance is not None:
            relevance[name] = figures.relevance_by_task(run.relevance)
    seed = f", seed {next(iter(shown.values())).seed}" if shown.keys() == groups.keys() else ""
    return {
        "Score against budget": figures.score_against_budget(groups),
        "Score against cost": figures.score_against_cost(groups),
        f"Images in common (%){seed}": figures.overlap(chosen),
        **_merge_identical(f"Task weights{seed}", weights),
        **_merge_identical(f"IRS (eq. 3) of the reference set{seed}", relevance),
    }


def _merge_identical(caption: str, drawn: Mapping[str, str]) -> dict[str, str]:
    """Merges identical figures; each is captioned with the names of all its settings."""
    names: dict[str, list[str]] = {}
    for name, svg in drawn.items():
        names.setdefault(svg, []).append(name)
    return {f"{caption}: {'; '.join(same)}": svg for svg, same in names.items()}
