"""The figures of a report, as SVG for an HTML page."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from presel.console.escaping import visible
from presel.report.statistics import spread
from presel.runs import RunRecord

# Text on a colored ground: nearly black, since black takes the color of the page's text.
_ON_COLOR = "#000001"
# Share from which on the heat map's blue is so dark that white is easier to read.
_DARK = 0.7


# By setting without its budget: budget, mean score and its standard deviation.
Curves = dict[str, list[tuple[float, float, float]]]


def curves_over_budgets(groups: Mapping[str, Sequence[RunRecord]]) -> Curves:
    """The points of `score_against_budget`; a setting that was run with one budget has one."""
    curves: Curves = {}
    for name, runs in groups.items():
        setting = " ".join(part for part in name.split(" ") if not part.startswith("budget="))
        means = [run.mean for run in runs]
        curves.setdefault(setting, []).append((runs[0].budget, float(np.mean(means)), spread(means) or 0.0))
    return curves


def score_against_budget(groups: Mapping[str, Sequence[RunRecord]]) -> str:
    """Mean score and its standard deviation over seeds, by budget; one line per setting."""
    figure, axes = _axes("budget (% of the pool)", "mean score (%)")
    drawn: dict[str, ErrorbarContainer] = {}
    for setting, points in curves_over_budgets(groups).items():
        budgets, scores, spreads = 100 * np.array(sorted(points)).T
        drawn[setting] = axes.errorbar(budgets, scores, yerr=spreads, fmt="o-", capsize=3)
    _add_legend(axes, drawn)
    return _svg(figure)


def score_against_cost(groups: Mapping[str, Sequence[RunRecord]]) -> str:
    """Mean score by the time of selection and tuning."""
    figure, axes = _axes("selection and tuning (s)", "mean score (%)")
    drawn: dict[str, Line2D] = {}
    for name, runs in groups.items():
        seconds = np.mean([run.seconds for run in runs])
        score = 100 * np.mean([run.mean for run in runs])
        (drawn[name],) = axes.plot(seconds, score, "o")
    _add_legend(axes, drawn)
    return _svg(figure)


def overlap(chosen: Mapping[str, set[tuple[str, str]]]) -> str:
    """Share of images that every two settings have in common (Jaccard index), as a heat map."""
    names = list(chosen)
    shares = np.array(
        [[len(chosen[a] & chosen[b]) / len(chosen[a] | chosen[b]) for b in names] for a in names]
    )
    figure, axes = _axes("", "", len(names))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [_escaped(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), labels)
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share > _DARK else _ON_COLOR
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)
    return _svg(figure)


def _add_legend(axes: Axes, drawn: Mapping[str, Line2D | ErrorbarContainer]) -> None:
    """Adds a legend beside the axes, since names of settings are long."""
    # Given as lists: Matplotlib ignores labels of artists that begin with an underscore.
    axes.legend(
        list(drawn.values()),
        [_escaped(name) for name in drawn],
        fontsize="small",
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
    )


def _escaped(name: str) -> str:
    """A name escaped so that Matplotlib does not read it as a formula."""
    return visible(name).replace("$", r"\$")


def _axes(x: str, y: str, rows: int = 0) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, high enough for this many row labels."""
    figure = Figure(figsize=(6.4, max(4, 0.2 * rows)))
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    # No date and fixed element ids: the same runs give the same page.
    with rc_context({"svg.hashsalt": "presel"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight", transparent=True)
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    # What Matplotlib draws in black takes the color of the page's text, for light and dark screens.
    return svg.replace("#000000", "currentColor")
