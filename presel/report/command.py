"""`presel report`: tables, figures and one page over many runs."""

import argparse
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Template

from presel.console import console
from presel.files import atomic
from presel.report import figures, tables
from presel.report.collect import Run, by_setting, collect
from presel.report.gallery import gallery
from presel.report.statistics import spread


def report_command(arguments: Sequence[str]) -> int:
    """Runs `presel report`.

    Returns:
        0.

    Raises:
        PreselError: If there is nothing to report on.
    """
    parser = argparse.ArgumentParser(
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
    parser.add_argument("--pictures", type=int, default=8, help="pictures a row of the gallery (%(default)s)")
    options = parser.parse_args(arguments)
    groups = by_setting(collect(options.runs))
    results = tables.results(groups, options.published)
    shown = tables.for_reading(results, list(next(iter(groups.values()))[0].scores))
    costs = tables.costs(results)
    notes = _notes(groups)
    page = Template((files("presel.report") / "page.html").read_text(), autoescape=True).render(
        title=options.title,
        summary=_summary(groups),
        tables={"": shown, "Costs": costs},
        notes=notes,
        figures=_figures(groups),
        shelves=gallery({name: runs[0] for name, runs in groups.items()}, options.pictures),
    )
    for name, text in {
        "report.html": page,
        "table.md": tables.markdown(shown) + "".join(f"\n{note}\n" for note in notes),
        "table.tex": tables.latex(shown),
        "table.csv": results.to_csv(index=False),
        "costs.md": tables.markdown(costs),
        "costs.tex": tables.latex(costs),
    }.items():
        with atomic(options.out / name) as temporary:
            temporary.write_text(text)
        console.print(options.out / name)
    return 0


def _summary(groups: Mapping[str, Sequence[Run]]) -> str:
    seeds = sorted({run.seed for runs in groups.values() for run in runs})
    return (
        f"{len(groups)} settings, seeds {', '.join(map(str, seeds))}. Scores in per cent, mean ± standard "
        "deviation over seeds; in brackets the 95 % interval of a paired bootstrap over seeds and questions."
    )


def _notes(groups: Mapping[str, Sequence[Run]]) -> list[str]:
    """Says whether the evaluation can tell strategies apart at all."""
    if not {"full", tables.BASELINE} <= groups.keys():
        return []
    noise = spread([run.mean for run in groups[tables.BASELINE]])
    full, random = (
        sum(run.mean for run in groups[name]) / len(groups[name]) for name in ("full", tables.BASELINE)
    )
    if noise is None or full <= random:
        return []
    share = noise / (full - random)
    verdict = "can tell strategies apart" if share <= 1 / 3 else "is too noisy: enlarge it or take more seeds"
    return [
        f"Random selection's spread over seeds is {100 * noise:.2f}, {100 * share:.0f} % of its distance to "
        f"the full pool ({100 * (full - random):.2f}): the evaluation {verdict}."
    ]


def _figures(groups: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    first = {name: runs[0] for name, runs in groups.items()}
    drawn = {
        "Score against budget": figures.score_against_budget(groups),
        "Score against cost": figures.score_against_cost(groups),
        f"Images in common (%), seed {next(iter(first.values())).seed}": figures.overlap(
            {name: set(run.chosen) for name, run in first.items()}
        ),
    }
    for name, run in first.items():
        if "task_weight" in run.selection:
            drawn[f"Task weights of {name}, seed {run.seed}"] = figures.task_weights(
                run.selection.groupby("task")["task_weight"].first()
            )
        if run.relevance is not None:
            relevance = run.relevance.merge(run.selection[["id", "task"]], on="id")
            drawn[f"IRS of the reference set, {name}, seed {run.seed}"] = figures.relevance_by_task(relevance)
    return drawn
