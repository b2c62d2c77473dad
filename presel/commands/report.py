"""`presel report`: tables, figures and one page over many runs."""

import argparse
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Template

from presel.console import ArgumentParser, console
from presel.console.escaping import csv_text, markdown_text, visible
from presel.report import tables
from presel.report.gallery import gallery
from presel.report.grouping import by_setting, evaluated, find_runs, left_out
from presel.report.notes import notes_on
from presel.report.published import PUBLISHED_TABLES
from presel.runs import RunRecord
from presel.storage.files import atomic


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
        action="append",
        choices=PUBLISHED_TABLES,
        help="a published table to show Rel. from; may be given several times (table1_llava665k)",
    )
    parser.add_argument(
        "--pictures", type=_count, default=8, help="images per row of the gallery (%(default)s)"
    )
    options = parser.parse_args(arguments)
    published = options.published or ["table1_llava665k"]
    found = find_runs(options.runs)
    groups = by_setting(evaluated(found))
    results = tables.results(groups, published)
    benchmarks = dict.fromkeys(name for runs in groups.values() for run in runs for name in run.scores)
    shown = tables.formatted(results, list(benchmarks), published)
    costs = tables.costs(results)
    notes = [*notes_on(groups, results, published), *left_out(options.runs, found)]
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
