"""`presel report`: tables, figures and one page over many runs."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from presel.console import ArgumentParser, console
from presel.console.arguments import whole_number
from presel.console.escaping import csv_text, markdown_text
from presel.errors import PreselError
from presel.pool_map import pool_map_if_encoded
from presel.report import tables
from presel.report.grouping import by_setting, evaluated, find_runs, left_out, selected
from presel.report.lead import on_results
from presel.report.notes import notes_on
from presel.report.page import PageOptions, page
from presel.report.published import PUBLISHED_TABLES
from presel.runs import RunRecord
from presel.selection.threads import cpu_count
from presel.storage.files import atomic

_UNITS = "Scores in percent, mean ± standard deviation over seeds."


def main(arguments: Sequence[str]) -> int:
    """Runs `presel report`."""
    parser = ArgumentParser(
        prog="presel report",
        description="Compare runs: mean and spread over seeds, intervals against random selection, costs. "
        "Runs that all ended with until=selection are compared by what they chose.",
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
        "--pictures", type=whole_number, default=8, help="images per row of the contact sheets (%(default)s)"
    )
    parser.add_argument("--no-map", action="store_true", help="leave the map of the pool out")
    options = parser.parse_args(arguments)
    if options.out.exists() and not options.out.is_dir():
        raise PreselError(f"--out={options.out} is a file; name a folder")
    found = find_runs(options.runs)
    written = _results(found, options) if any(run.tuned for run in found) else _selections(found, options)
    for name, text in written.items():
        with atomic(options.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        console.print(options.out / name)
    return 0


def _results(found: Sequence[RunRecord], options: argparse.Namespace) -> dict[str, str]:
    """Files about runs that were evaluated, by name."""
    published = options.published or ["table1_llava665k"]
    groups = by_setting(evaluated(found))
    results = tables.results(groups, published)
    scores = tables.scores(groups)
    shown = tables.formatted(results, scores, published)
    costs = tables.costs(results)
    notes = [*notes_on(groups, results, published), *left_out(options.runs, found)]
    drawn = _one_run_per_setting(groups)
    text = page(
        options.title,
        drawn,
        _places(list(drawn.values()), options),
        _page_options(options),
        lead=on_results(groups, results),
        tables={**tables.in_parts(results, scores, published), "Time and instructions": costs},
        notes=[_UNITS, *notes],
        figures=_figures(groups, drawn),
    )
    return {
        "report.html": text,
        "table.md": tables.markdown(shown) + "".join(f"\n{markdown_text(note)}\n" for note in notes),
        "table.tex": tables.latex(shown),
        "table.csv": csv_text(tables.all_columns(results, scores)),
        "runs.csv": csv_text(tables.of_runs(groups)),
        "costs.md": tables.markdown(costs),
        "costs.tex": tables.latex(costs),
    }


def _selections(found: Sequence[RunRecord], options: argparse.Namespace) -> dict[str, str]:
    """Files about runs that all ended before the evaluation, by name."""
    groups = by_setting(selected(found))
    drawn = _one_run_per_setting(groups)
    table = tables.selections(groups)
    text = page(
        options.title,
        drawn,
        _places(list(drawn.values()), options),
        _page_options(options),
        tables={"Selections": table} if len(groups) > 1 else {},
        notes=left_out(options.runs, found),
        figures=_overlap(drawn),
    )
    return {"report.html": text, "table.md": tables.markdown(table), "table.tex": tables.latex(table)}


def _page_options(options: argparse.Namespace) -> PageOptions:
    return PageOptions(row=options.pictures, workers=cpu_count())


def _places(runs: Sequence[RunRecord], options: argparse.Namespace) -> pd.DataFrame | str:
    """The map of the runs' pool, or why there is none."""
    if options.no_map:
        return "The map was left out (--no-map)."
    if len({run.stages["images"].key for run in runs}) > 1:
        return "There is no map, since these runs are on several pools."
    # One that has encoded the images, if there is one.
    encoded = sorted(runs, key=lambda run: "features" not in run.stages)
    try:
        places = pool_map_if_encoded(encoded[0])
    except PreselError as error:
        return f"There is no map: {error}."
    if places is None:
        return "There is no map, since none of these runs has encoded the images; presel view RUN does so."
    return places


def _one_run_per_setting(groups: Mapping[str, Sequence[RunRecord]]) -> dict[str, RunRecord]:
    """One run per setting, with the lowest common seed; without a common seed, any, named with its seed."""
    common = set.intersection(*({run.seed for run in runs} for runs in groups.values()))
    if common:
        return {name: next(run for run in runs if run.seed == min(common)) for name, runs in groups.items()}
    return {f"{name}, seed {runs[0].seed}": runs[0] for name, runs in groups.items()}


def _figures(groups: Mapping[str, Sequence[RunRecord]], shown: Mapping[str, RunRecord]) -> dict[str, str]:
    """Figures of the results by caption, but none with a single point."""
    # matplotlib takes a second to import.
    from presel.report import figures

    drawn = {}
    if any(len(points) > 1 for points in figures.curves_over_budgets(groups).values()):
        drawn["Score against budget"] = figures.score_against_budget(groups)
    if len(groups) > 1:
        drawn["Score against cost"] = figures.score_against_cost(groups)
    return drawn | _overlap(shown)


def _overlap(shown: Mapping[str, RunRecord]) -> dict[str, str]:
    """The figure of images in common by caption, if there is something to compare."""
    if len(shown) < 2:
        return {}
    from presel.report import figures

    # Pools may give different images the same id.
    chosen = {
        name: {(run.stages["images"].key, image) for image in run.chosen["id"]} for name, run in shown.items()
    }
    return {
        "Images that two settings have in common, in % of those that either chose": figures.overlap(chosen)
    }
