"""`presel report`: tables, notes and figures, and the real command on real runs."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from presel.console.escaping import visible
from presel.evaluation.scores import ModelScores, mean_score
from presel.report import figures
from presel.report.grouping import by_setting
from presel.report.notes import notes_on
from presel.report.summary import summarize_sweep
from presel.report.tables import all_columns, costs, formatted, latex, markdown, of_runs, results, scores
from presel.runs import load_run
from tests.chosen import finished
from tests.helpers import TINY, Program
from tests.runs import recorded, run, tuned


def test_a_benchmark_may_be_named_as_another_column(tmp_path: Path) -> None:
    drawn = {name: [0.0, 1.0, 0.0, 0.0] for name in ("low", "mean", "relative", "seed", "p")}
    runs = [run(tmp_path, name, seed, drawn) for name in ("presel", "random") for seed in (0, 1)]
    stages = tuned(tmp_path, "any").stages
    runs = [replace(one, stages=stages | one.stages) for one in runs]
    groups = by_setting(runs)
    table, means = results(groups, []), scores(groups)
    shown = formatted(table, means, [])
    assert shown["mean"].tolist() == ["25.0 ± 0.0"] * 2
    assert shown["mean (benchmark)"].tolist() == ["25.0"] * 2
    assert all_columns(table, means).filter(like="(benchmark)").columns.tolist() == [
        "low (benchmark)",
        "mean (benchmark)",
        "relative (benchmark)",
        "p (benchmark)",
    ]
    assert of_runs(groups)["seed (benchmark)"].tolist() == [0.25] * 4
    (row,) = runs[0].summary()
    assert (row["mean"], row["mean (benchmark)"], row["relative"]) == (0.25, 0.25, None)


def test_labeled_samples_outside_the_pool_stand_in_the_row(tmp_path: Path) -> None:
    runs = [tuned(tmp_path, "icons"), tuned(tmp_path, "tive")]
    runs[0].stages["validation_samples"] = finished(tmp_path / "samples", samples=9)
    groups = by_setting(runs)
    table = results(groups, [])
    assert formatted(table, scores(groups), [])["read first"].tolist() == ["0.0 + 9 labeled", "0.0"]
    assert ["Labeled" in note for note in notes_on(by_setting(runs), table, [])].count(True) == 1
    assert not any("Labeled" in note for note in notes_on(by_setting(runs[1:]), table[1:], []))


def test_text_that_is_tuned_on_besides_is_reported(tmp_path: Path) -> None:
    runs = [tuned(tmp_path, "icons"), tuned(tmp_path, "tive")]
    runs[1].stages["text_only"] = finished(tmp_path / "text", samples=9)
    notes = [notes_on(by_setting(shown), results(by_setting(shown), []), []) for shown in (runs, runs[:1])]
    assert [any("records without an image" in note for note in found) for found in notes] == [True, False]


def test_the_cost_measure_by_hand(tmp_path: Path) -> None:
    runs = [
        tuned(tmp_path, "presel", score=0.4),
        tuned(tmp_path, "random", score=0.0),
        tuned(tmp_path, "full", budget=20, score=0.6),
    ]
    # Selection and tuning take a second each.
    table = results(by_setting(runs), []).set_index("setting")
    assert table["prism_cost"].to_dict() == pytest.approx(
        {"presel": 0.6 / 0.4 * 2, "random": np.nan, "full": 2}, nan_ok=True
    )
    assert costs(table.reset_index())["C (PRISM)"].tolist() == ["3.00", "–", "2.00"]
    assert results(by_setting(runs[:2]), [])["prism_cost"].isna().all()


def test_why_there_is_no_relative_score_is_reported(tmp_path: Path) -> None:
    runs = [tuned(tmp_path, "presel", score=0.4), tuned(tmp_path, "full", budget=20, score=0.0)]
    for count, told in ((1, "there are no runs of strategy=full"), (2, "the full pool's model scores 0 on ")):
        groups = by_setting(runs[:count])
        (note,) = [one for one in notes_on(groups, results(groups, []), []) if one.startswith("No Rel.")]
        assert told in note


@pytest.mark.parametrize(
    ("whole", "told"),
    [
        (0.8, "1.41, at most a third of its distance to the full pool, 29.00: the evaluation can tell "),
        (0.52, "1.41, above a third of its distance to the full pool, 1.00: the evaluation is too noisy to "),
        (0.4, "1.41; the full pool scores no higher, so that there is no distance to measure it against."),
    ],
)
def test_the_spread_over_seeds_is_measured_against_a_distance(
    tmp_path: Path, whole: float, told: str
) -> None:
    runs = [tuned(tmp_path, "random", seed=seed, score=score) for seed, score in ((0, 0.5), (1, 0.52))]
    groups = by_setting([*runs, tuned(tmp_path, "full", budget=20, score=whole)])
    assert notes_on(groups, results(groups, []), [])[1].startswith(
        f"The spread of random over seeds is {told}"
    )


def test_equal_scores_have_no_distance_to_the_full_pool(tmp_path: Path) -> None:
    runs = [tuned(tmp_path, "random", seed=seed) for seed in range(2)]
    groups = by_setting([*runs, tuned(tmp_path, "full", budget=20)])
    assert notes_on(groups, results(groups, []), [])[1] == (
        "The spread of random over seeds is 0.00; the full pool scores no higher, so that there is no "
        "distance to measure it against."
    )


def test_rows_with_fewer_seeds_than_random_are_reported(tmp_path: Path) -> None:
    seeds = {
        "random": range(7),
        "presel": range(7),
        "el2n": range(5),
        "full": range(2),
        "own": range(4, 9),
    }
    runs = [tuned(tmp_path, name, seed=seed) for name, several in seeds.items() for seed in several]
    groups = by_setting(runs)
    assert notes_on(groups, pd.DataFrame({"setting": list(groups)}), [])[1:] == [
        "Fewer than 5 seeds: full (2).",
        "Compared with random on common seeds only: own (3 of 5).",
        "Compared with random on some of its seeds, so that the difference need not be that of the means "
        "shown: el2n (5 of 7), full (2 of 7).",
    ]


def test_markdown_and_latex_of_one_table() -> None:
    shown = pd.DataFrame({"setting": ["clip_score a|b"], "mean": ["54.0 ± 1.0"]})
    assert markdown(shown) == "| setting | mean |\n| --- | ---: |\n| clip_score a\\|b | 54.0 ± 1.0 |\n"
    assert r"clip\_score" in latex(shown)
    assert r"\toprule" in latex(shown)


def test_names_are_no_commands_in_tables() -> None:
    shown = pd.DataFrame({"setting": ["a\\|`b`\x1b\n<script>[x](javascript:y)"], "$\\frac{$": ["\x1b"]})
    assert markdown(shown).splitlines()[2] == (
        r"| a\\\|\`b\`\\x1b\\n&lt;script&gt;[x]\(javascript:y) | \\x1b |"
    )
    assert "\x1b" not in latex(shown)
    assert r"\$\textbackslash frac\{\$" in latex(shown)


def test_figures_draw_names_as_they_are(tmp_path: Path) -> None:
    names = ["$\\frac{$", "_hidden", "a_b^{c", "$$", "\\$5", "\x1b]0;pwn", "two\nlines"]
    groups = {name: [tuned(tmp_path, "presel", f"k={number}")] for number, name in enumerate(names)}
    for svg in (
        figures.score_against_budget(groups),
        figures.score_against_cost(groups),
        figures.overlap({name: {("pool", "a")} for name in names}),
    ):
        # Matplotlib notes each text that it draws.
        assert [name for name in names if f"<!-- {visible(name)} -->" not in svg] == []


@pytest.mark.slow
def test_the_report_of_a_sweep(program: Program, in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("run", "-m", *TINY, "strategy=random,presel", "seed=0,1")
    in_process.succeeds("run", *TINY, "strategy=full")
    in_process.succeeds("run", *TINY, "until=selection")
    in_process.refuses("run", *TINY, "budget=0.0001")
    both = ["--published", "table1_llava665k", "--published", "visnec_llava665k"]
    program.succeeds("report", "outputs/runs", "--title", "A <small> sweep", *both)
    folder = tmp_path / "outputs" / "report"
    table = pd.read_csv(folder / "table.csv").set_index("setting")
    runs_of = pd.read_csv(folder / "runs.csv").groupby("setting")
    assert {name: sorted(rows["seed"]) for name, rows in runs_of} == {
        "random": [0, 1],
        "presel": [0, 1],
        "full": [0],
    }
    summarized = ["requested", "requested_first", "yesno", "mean", "selection_seconds", "tuning_seconds"]
    assert runs_of[summarized].mean().loc[table.index].to_numpy() == pytest.approx(
        table[summarized].to_numpy()
    )
    assert set(table.index) == {"random", "presel", "full"}
    runs = [load_run(file.parent) for file in tmp_path.glob("outputs/runs/**/run.json")]
    for name, row in table.iterrows():
        means = [mean_score(run.scores) for run in runs if run.strategy == name and run.tuned]
        assert row["mean"] == pytest.approx(np.mean(means))
        assert row["mean_sd"] == pytest.approx(pd.Series(means).std(), nan_ok=True)
        assert row["requested"] == (1 if name == "full" else 0.15)
        # 5 % of each task are 11 images.
        assert row["requested_first"] == (11 / 200 if name == "presel" else 0)
        assert row["seeds"] == (1 if name == "full" else 2)
    assert table.loc["presel", "difference"] == pytest.approx(table["mean"].diff().abs().iloc[1], abs=1)
    assert table.loc["full", "prism_cost"] >= 1
    assert table["prism_cost"].notna().all()
    assert table.loc["presel", "p_holm"] == table.loc["presel", "p"]
    assert table.loc[["random", "full"], "p_holm"].isna().all()
    shown = (folder / "table.md").read_text()
    assert re.search(r"\| against random \| paired t \| p \(Holm\) \|", shown)
    assert "conditional on one pool" in shown
    assert shown.startswith("| setting | seeds | requested | read first | mean | Rel. |")
    assert re.search(
        r"\| yesno \| Rel\. in PreSel's Table 1 \| Rel\. in VisNec's table \(LLaVA-665K\) \|\n", shown
    )
    assert "Fewer than 5 seeds: full (1), random (2), presel (2)." in shown
    assert "Compared with random on common seeds only: full" not in shown
    # Models this small may learn nothing from more samples.
    assert re.search(r"spread of random over seeds is [\d.]+(, .* third|; the full pool scores no)", shown)
    assert re.search(r"Left out: 1 that did not finish, such as outputs/runs/.*\.\n", shown)
    assert re.search(r"Left out: 1 that ended before the evaluation, such as outputs/runs/.*\.\n", shown)
    costs = (folder / "costs.md").read_text().splitlines()
    assert costs[0].startswith("| setting | instructions | requested | selection | tuning | together |")
    assert sum("| 30 | 15.0 |" in line for line in costs[2:]) == 2
    assert costs[0].count("of the full pool's | C (PRISM) |") == 1
    page = (folder / "report.html").read_text()
    assert "A &lt;small&gt; sweep" in page
    assert page.count("<svg") >= 5
    assert page.count("data:image/webp;base64,") > 20
    # The comparison with random selection is what one sees first; a curve of one point is left out.
    assert re.search(r'<thead><tr><th scope="col">setting</th><th scope="col">against random</th>', page)
    assert "3 settings on a pool of 200 images, seeds 0, 1." in page
    assert "Too few seeds to test these differences from random selection: presel" in page
    assert "Score against cost" in page
    assert "Score against budget" not in page
    assert 'id="map-data"' in page
    # Self-contained: nothing is loaded from anywhere.
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_reporting_on_nothing_says_what_to_do(in_process: Program) -> None:
    result = in_process.refuses("report", "outputs/runs")
    assert "until=evaluation" in result


def test_a_sweep_over_models_shows_the_base_of_each(tmp_path: Path) -> None:
    for job, (model, base) in enumerate((("a", 0.1), ("a", 0.1), ("b", 0.2), ("b", 0.2))):
        recorded(
            tmp_path / str(job),
            "random",
            scores={"vqa": base + (job + 1) / 10},
            baselines=[ModelScores("base", {"vqa": base})],
            overrides=[f"lvlm={model}", f"seed={job}"],
        ).write()
    summarize_sweep(tmp_path)
    assert pd.read_csv(tmp_path / "summary.csv").set_index("strategy")["mean"].to_dict() == pytest.approx(
        {
            "base": 0.1,
            "random lvlm=a seed=0": 0.2,
            "random lvlm=a seed=1": 0.3,
            "base (random lvlm=b seed=2)": 0.2,
            "random lvlm=b seed=2": 0.5,
            "random lvlm=b seed=3": 0.6,
        }
    )
