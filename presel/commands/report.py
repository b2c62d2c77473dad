"""`presel report`: tables, figures and one page over many runs."""

import argparse
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Template

from presel.console import ArgumentParser, console
from presel.console.escaping import csv_text, markdown_text, visible
from presel.report import figures, tables
from presel.report.collect import Run, by_setting, collect, counterpart, left_out
from presel.report.gallery import gallery
from presel.report.statistics import spread
from presel.storage.files import atomic

# What a row of the paper's tables should rest on.
_ENOUGH_SEEDS = 5


def report_command(arguments: Sequence[str]) -> int:
    """Runs `presel report`.

    Returns:
        0.

    Raises:
        PreselError: If there is nothing to report on, or what there is cannot be compared.
    """
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
        help="the paper's table whose Rel. stands beside (%(default)s)",
    )
    parser.add_argument(
        "--pictures", type=_count, default=8, help="pictures a row of the gallery (%(default)s)"
    )
    options = parser.parse_args(arguments)
    groups = by_setting(collect(options.runs))
    results = tables.results(groups, options.published)
    benchmarks = dict.fromkeys(name for runs in groups.values() for run in runs for name in run.scores)
    shown = tables.for_reading(results, list(benchmarks))
    costs = tables.costs(results)
    notes = [*_intervals(shown), *_verdicts(groups), *_few_seeds(groups), *left_out(options.runs)]
    template = (files("presel.report") / "page.html").read_text(encoding="utf-8")
    page = Template(template, autoescape=True, finalize=_shown).render(
        title=options.title,
        summary=_summary(groups),
        tables={"": shown, "Costs": costs},
        notes=notes,
        figures=_figures(groups),
        shelves=gallery(_of_one_seed(groups), options.pictures),
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
    """Writes out control characters in the page's text; figures are `Markup`."""
    return visible(value) if type(value) is str else value


def _summary(groups: Mapping[str, Sequence[Run]]) -> str:
    seeds = sorted({run.seed for runs in groups.values() for run in runs})
    return (
        f"{len(groups)} settings, seeds {', '.join(map(str, seeds))}. Scores in per cent, mean ± standard "
        "deviation over seeds."
    )


def _intervals(shown: pd.DataFrame) -> list[str]:
    """Says what the table's intervals cover, if it has any."""
    if "paired t" not in shown:
        return []
    return [
        f"In brackets 95 % intervals of the difference: against {tables.BASELINE} by a paired bootstrap over "
        "seeds and questions; paired t over seeds alone, whose p is adjusted for the table's rows (Holm). "
        "Both are conditional on one pool, one draw of benchmarks, one base model and one seed of k-means."
    ]


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _verdicts(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    """Says whether the evaluation can tell strategies apart at all."""
    notes = []
    for name, runs in groups.items():
        whole = counterpart(runs, tables.WHOLE_POOL, groups)
        noise = spread([run.mean for run in runs])
        if runs[0].strategy != tables.BASELINE or not whole or noise is None:
            continue
        gap = float(np.mean([run.mean for run in whole]) - np.mean([run.mean for run in runs]))
        share, told = ("at most", "can") if noise <= gap / 3 else ("above", "is too noisy to")
        notes.append(
            f"The spread of {name} over seeds is {100 * noise:.2f}, {share} a third of its distance to the "
            f"full pool, {100 * gap:.2f}: the evaluation {told} tell strategies apart."
        )
    return notes


def _few_seeds(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    """Says which rows rest on few seeds, and which are held against nothing."""
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
        notes.append(f"Held against {tables.BASELINE} on the seeds that both have: {', '.join(partly)}.")
    if alone:
        notes.append(
            f"Without {tables.BASELINE} of the same budget, conditions and seeds: {', '.join(alone)}."
        )
    return notes


def _of_one_seed(groups: Mapping[str, Sequence[Run]]) -> dict[str, Run]:
    """A run of each setting: of the lowest seed that all have, or else of any, which its name then says."""
    common = set.intersection(*({run.seed for run in runs} for runs in groups.values()))
    if common:
        return {name: next(run for run in runs if run.seed == min(common)) for name, runs in groups.items()}
    return {f"{name}, seed {runs[0].seed}": runs[0] for name, runs in groups.items()}


def _figures(groups: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    shown = _of_one_seed(groups)
    # Pools may give different images the same id.
    chosen = {name: {(run.stages["pool"], image) for image in run.chosen} for name, run in shown.items()}
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
        **{f"Task weights{seed}: {names}": svg for names, svg in _together(weights).items()},
        **{
            f"IRS (eq. 3) of the reference set{seed}: {names}": svg
            for names, svg in _together(relevance).items()
        },
    }


def _together(drawn: Mapping[str, str]) -> dict[str, str]:
    """Shows a figure once, under the names of all settings that have it."""
    names: dict[str, list[str]] = {}
    for name, svg in drawn.items():
        names.setdefault(svg, []).append(name)
    return {"; ".join(same): svg for svg, same in names.items()}
