"""Where PreSel wins or loses against random selection, task by task.

Command: `python -m experiments.table1.examine outputs/runs/DATE/TIME`, a folder of `presel`, `random`
and `full` under the same seeds. Prints a table in Markdown, and the shares of what is still to be gained, for
`strategy.shares` of `given_budgets`.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from presel.importance import relevance_scores
from presel.report.grouping import by_setting, evaluated, find_runs
from presel.report.tables import markdown
from presel.runs import RunRecord


def examine(presel: list[RunRecord], random: list[RunRecord], full: list[RunRecord]) -> pd.DataFrame:
    """One row a task: means over the seeds.

    Returns:
        Images in the pool (share), IRS, share of the budget of both strategies, scores, PreSel's score minus
        random's, and what all instructions add to random's score (the headroom).
    """
    tables = [run.relevance for run in presel if run.relevance is not None]
    irs = pd.concat(
        table.assign(irs=relevance_scores(table["loss_with_question"], table["loss_without_question"]))
        .groupby("task")["irs"]
        .mean()
        for table in tables
    )
    scores = {
        name: pd.DataFrame([run.scores for run in runs]).mean()
        for name, runs in {"random": random, "presel": presel, "full": full}.items()
    }
    return pd.DataFrame(
        {
            "pool": presel[0].selection["task"].value_counts(normalize=True),
            "IRS": irs.groupby(level=0).mean(),
            "budget, random": _bought(random),
            "budget, presel": _bought(presel),
            **scores,
            "presel − random": scores["presel"] - scores["random"],
            "headroom": scores["full"] - scores["random"],
        }
    ).sort_values("IRS")


def _bought(runs: list[RunRecord]) -> pd.Series:
    shares = [
        run.selection.loc[run.selection["selected"], "task"].value_counts(normalize=True) for run in runs
    ]
    return pd.concat(shares).groupby(level=0).mean()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    groups = by_setting(evaluated(find_runs(parser.parse_args().runs)))
    table = examine(groups["presel"], groups["random"], groups["full"])
    shown = table.map(lambda value: f"{100 * value:.1f}").assign(IRS=table["IRS"].map("{:.3f}".format))
    print(markdown(shown.rename_axis("task").reset_index()))
    ratio = table["budget, presel"] / table["budget, random"]
    for name, first, second in (
        ("IRS and headroom", table["IRS"], table["headroom"]),
        ("budget ratio and gain", ratio, table["presel − random"]),
        ("budget ratio and headroom", ratio, table["headroom"]),
    ):
        print(f"rank correlation of {name}: {first.corr(second, method='spearman'):+.2f}")
    share = (table["headroom"].clip(lower=0) / table["headroom"].clip(lower=0).sum()).round(3)
    print("shares of the headroom:", json.dumps(share.to_dict()).replace('"', "").replace(" ", ""))
    mean = table[["random", "presel", "full"]].mean()
    print("mean scores:", ", ".join(f"{name} {100 * value:.2f}" for name, value in mean.items()))


if __name__ == "__main__":
    main()
