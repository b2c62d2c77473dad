"""Draws README's picture from a finished quickstart: what PreSel chose, and what all strategies score.

python experiments/quickstart/picture.py outputs/runs/DATE/TIME docs/images/quickstart.png
"""

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import presel
from presel.data.images import open_image

TASKS = ("count", "caption", "math", "dialog")
PICTURES = 5
NAMES = {
    "base": "before tuning",
    "random": "random, 15 %",
    "presel": "PreSel, 15 %",
    "full": "all instructions",
}


def main() -> None:
    """Reads the command line, draws, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    parser.add_argument("out", type=Path, help="the PNG to write")
    options = parser.parse_args()
    runs = [presel.load_run(file.parent) for file in sorted(options.sweep.glob("*/run.json"))]
    draw({run.strategy: run for run in runs}).savefig(options.out, dpi=110, bbox_inches="tight")


def draw(runs: dict[str, presel.RunRecord]) -> Figure:
    """Pictures on the left, scores on the right.

    Args:
        runs: A run of each strategy.
    """
    figure = Figure(figsize=(12, 3.3), facecolor="white")
    left, right = figure.subfigures(1, 2, width_ratios=(2.2, 1))
    run = runs["presel"]
    table = run.selection.merge(run.pool[["id", "image"]], on="id")
    panels = left.subplots(len(TASKS), 2 * PICTURES + 1, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
    for row, task in zip(panels, TASKS, strict=True):
        of_task = table[table["task"] == task].sort_values("centrality", ascending=False)
        chosen, unchosen = (of_task[of_task["selected"] == flag]["image"] for flag in (True, False))
        for axes, image in zip(row, [*chosen.head(PICTURES), None, *unchosen.tail(PICTURES)], strict=True):
            show(axes, image and run.image_folder / image)
        row[0].set_ylabel(task, rotation=0, ha="right", va="center")
    panels[0][2].set_title("most central: chosen", fontsize=10)
    panels[0][-3].set_title("least central: left out", fontsize=10)
    bars(right.subplots(), runs)
    return figure


def show(axes: Axes, file: Path | None) -> None:
    """A picture, or a gap."""
    axes.set(xticks=[], yticks=[])
    if file is None:
        axes.set_visible(False)
    else:
        axes.imshow(open_image(file))


def bars(axes: Axes, runs: dict[str, presel.RunRecord]) -> None:
    """The mean score of each strategy, and of the model before any tuning."""
    rows = {row["strategy"]: row["mean"] for run in runs.values() for row in run.summary()}
    drawn = axes.barh(list(NAMES.values()), [100 * rows[name] for name in NAMES])
    axes.bar_label(drawn, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set_title("mean score (%) on ten held-out benchmarks", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
