"""`presel report`: statistics by hand, and the real command on real runs."""

import json
import re
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from scipy import stats

from presel.console.escaping import visible
from presel.errors import PreselError
from presel.evaluation.scores import ModelScores, mean_score, relative_score
from presel.report import figures
from presel.report.grouping import by_setting, counterpart, evaluated, find_runs
from presel.report.notes import notes_on
from presel.report.published import PRESEL, VISNEC, published_relative
from presel.report.statistics import compare, holm, paired_t, rank_correlation
from presel.report.summary import job_names, summarize_sweep
from presel.report.tables import costs, formatted, latex, markdown, results
from presel.runs import RunRecord, StageRecord, load_run
from tests.chosen import finished
from tests.helpers import TINY, Program


def run(folder: Path, strategy: str, seed: int, answers: dict[str, list[float]]) -> RunRecord:
    """A run that left nothing but its answers."""
    where = folder / f"{strategy} {seed}"
    where.mkdir()
    rows = [
        {"benchmark": benchmark, "id": f"{number:03}", "turn": 0, "score": score}
        for benchmark, scores in answers.items()
        for number, score in enumerate(scores)
    ]
    pd.DataFrame(rows).sample(frac=1, random_state=seed).to_parquet(where / "predictions.parquet")
    scores = {benchmark: float(np.mean(scores)) for benchmark, scores in answers.items()}
    return recorded(where, strategy, seed, scores, {"evaluation": finished(where)})


def recorded(
    folder: Path,
    strategy: str,
    seed: int = 0,
    scores: dict[str, float] | None = None,
    stages: dict[str, StageRecord] | None = None,
    **more: Any,
) -> RunRecord:
    """A run's record, with what a test does not ask for left empty; its configuration is its overrides."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    overrides = more.pop("overrides", [])
    OmegaConf.save(
        OmegaConf.from_dotlist([f"strategy={strategy}", *overrides]), folder / ".hydra/config.yaml"
    )
    return RunRecord(
        unused=[],
        folder=folder,
        strategy=strategy,
        seed=seed,
        overrides=overrides,
        image_folder=folder,
        stages=stages or {},
        tuned=ModelScores(strategy, scores, requested=0.15, seconds=1.0) if scores else None,
        baselines=more.pop("baselines", []),
        versions={},
        **more,
    )


def test_the_interval_of_a_difference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def drawn(seed: int, strategy: str, chance: float) -> RunRecord:
        answers = {name: (rng.random(200) < chance).astype(float).tolist() for name in ("vqa", "ocr")}
        return run(tmp_path, strategy, seed, answers)

    ours = [drawn(seed, "presel", 0.6) for seed in range(5)]
    random = [drawn(seed, "random", 0.5) for seed in range(1, 6)]
    found = compare(ours, random)
    assert found is not None
    assert found.seeds == 4  # 1 to 4
    paired = [a.mean - b.mean for a, b in zip(ours[1:], random[:4], strict=True)]
    assert found.difference == pytest.approx(np.mean(paired))
    assert found.seeds_won == sum(difference > 0 for difference in paired)
    assert (found.benchmarks, found.benchmarks_won) == (2, 2)
    assert found.low < found.difference < found.high
    # Two proportions of 1,600 answers each: a standard error of 0.0175. The bootstrap is wider, see there.
    assert 4 * 0.0175 < found.high - found.low < 8 * 0.0175
    test = stats.ttest_rel([one.mean for one in ours[1:]], [one.mean for one in random[:4]])
    assert (found.t_low, found.t_high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.p == pytest.approx(test.pvalue)
    assert compare(ours[:1], random) is None
    single = compare(ours[1:2], random)
    assert single is not None
    assert (single.seeds, single.low, single.high) == (1, None, None)
    assert (single.t_low, single.t_high, single.p) == (None, None, None)


def test_the_t_interval_by_hand() -> None:
    # Mean 2, standard deviation 1. t of 2 degrees of freedom is 4.3027 at 97.5 %; ±2√3 leave 0.0742 outside.
    low, high, p = paired_t(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert p == pytest.approx(0.0742, abs=1e-4)
    assert paired_t(np.zeros(3)) == (0, 0, 1)
    assert paired_t(np.full(3, 0.25)) is None


def test_the_t_interval_keeps_its_level_with_five_seeds() -> None:
    drawn = np.random.default_rng(0).normal(0.3, 2.0, (1000, 5))
    held = np.mean([low < 0.3 < high for low, high, _ in map(paired_t, drawn)])
    # Three standard errors of a share of 1,000.
    assert held == pytest.approx(0.95, abs=0.021)


def test_holm_by_hand() -> None:
    # Times 4, 3, 2, 1 from the smallest on, and never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([]) == []


def test_the_order_of_equal_terms_wins_nothing(tmp_path: Path) -> None:
    sums = {"random": (0.5, 0.6, 0.3), "presel": (0.4, 0.4, 0.6)}
    ours, random = (
        [run(tmp_path, name, seed, {"vqa": [score]}) for seed, score in enumerate(scores)]
        for name, scores in sums.items()
    )
    assert sum(one.mean for one in ours) == pytest.approx(sum(one.mean for one in random))
    found = compare(ours, random)
    assert found is not None
    assert (found.seeds_won, found.benchmarks_won) == (2, 0)


def test_a_strategy_does_not_differ_from_itself(tmp_path: Path) -> None:
    same = [run(tmp_path, "random", seed, {"vqa": [0.0, 1.0, 1.0]}) for seed in range(3)]
    found = compare(same, same)
    assert found is not None
    assert (found.difference, found.low, found.high, found.seeds_won) == (0, 0, 0, 0)
    assert (found.t_low, found.t_high, found.p) == (0, 0, 1)


def tuned(
    folder: Path,
    strategy: str,
    *overrides: str,
    budget: int = 3,
    seed: int = 0,
    tune: str = "llava15",
    score: float = 0.5,
    **more: Any,
) -> RunRecord:
    """A run on a pool of 20 that left what says under which conditions it was, and no answers."""
    where = folder / f"{strategy} {' '.join(overrides)} {seed} {tune}"
    selection = where / "selection"
    selection.mkdir(parents=True)
    pool = pd.DataFrame({"id": [str(number) for number in range(20)], "task": "vqa", "selected": True})
    pool.to_parquet(selection / "selection.parquet")
    stages = {
        "images": finished(folder / "images"),
        "selection": finished(selection, {"seed": seed}, budget=budget),
        "instructions": finished(where / "instructions", {"chosen": strategy, "provider": "annotations"}),
        "model": finished(where / "model", {"instructions": strategy, "seed": seed, "tune": tune}),
        "evaluation": finished(where / "evaluation", {"tuned": strategy, "benchmarks": "vqa"}),
    }
    return recorded(where, strategy, seed, {"vqa": score}, stages, overrides=list(overrides), **more)


@pytest.mark.parametrize("setting", ["tau.value", "strategy.beta"])
def test_a_setting_that_a_run_does_not_read_sets_it_not_apart(tmp_path: Path, setting: str) -> None:
    first, second = (tuned(tmp_path, "precover", f"{setting}={value}") for value in (0.1, 1))
    key = setting.removesuffix(".value")
    alike = [replace(one, unused=[key], stages=first.stages) for one in (first, second)]
    assert {name: len(runs) for name, runs in by_setting(alike).items()} == {"precover": 1}
    assert job_names(alike) == ["precover", "precover"]


def test_settings_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    runs = [
        tuned(tmp_path, "presel", "pool.size=400", f"tau.value={tau}", *more, seed=seed)
        for tau, more in ((0.1, ()), (1, ("k=3",)))
        for seed in (1, 0)
    ]
    groups = by_setting(runs)
    assert list(groups) == ["presel tau.value=0.1", "presel k=3 tau.value=1"]
    assert [one.seed for one in groups["presel tau.value=0.1"]] == [0, 1]
    assert by_setting([*runs, runs[0]]) == groups
    again = tuned(tmp_path / "again", "presel", "pool.size=400", "tau.value=0.1", seed=1)
    with pytest.raises(PreselError, match=r"both 'presel tau\.value=0\.1' with seed 1"):
        by_setting([*runs, replace(again, stages=again.stages | {"images": runs[0].stages["images"]})])


def test_a_strategys_own_settings_tell_its_runs_apart(tmp_path: Path) -> None:
    grid = [
        ["strategy.budgets=size", "strategy.picks=kmeans"],
        ["strategy.budgets=uniform", "strategy.picks=kmeans"],
        ["encoder=lvlm", "strategy.budgets=uniform", "strategy.picks=kmeans"],
    ]
    runs = [tuned(tmp_path, "precover", *overrides, seed=seed) for overrides in grid for seed in (0, 1)]
    # Random selection reads no encoder, so that runs with another one are more seeds of it.
    random = [
        replace(tuned(tmp_path, "random", *overrides, seed=seed), unused=["encoder"])
        for overrides, seed in (([], 0), (["encoder=lvlm"], 1))
    ]
    groups = by_setting([*random, *runs])
    assert {name: [run.seed for run in group] for name, group in groups.items()} == {
        "random": [0, 1],
        "precover strategy.budgets=size strategy.picks=kmeans": [0, 1],
        "precover strategy.budgets=uniform strategy.picks=kmeans": [0, 1],
        "precover encoder=lvlm strategy.budgets=uniform strategy.picks=kmeans": [0, 1],
    }
    assert all(len(counterpart(group, "random", groups)) == 2 for group in groups.values())
    assert list(by_setting(runs)) == [
        "precover strategy.budgets=size",
        "precover strategy.budgets=uniform",
        "precover encoder=lvlm strategy.budgets=uniform",
    ]


def test_what_an_experiment_sets_tells_runs_apart_too(tmp_path: Path) -> None:
    named = [tuned(tmp_path, "presel", f"tau.value={seed}", seed=seed) for seed in (0, 1)]
    assert list(by_setting(named)) == ["presel tau.value=0", "presel tau.value=1"]
    # The same settings without their overrides, as where an experiment's file has them.
    with pytest.raises(
        PreselError, match="are both 'presel', but differ in their tau; report on them one by"
    ):
        by_setting([replace(run, overrides=[]) for run in named])
    # The same by another name.
    alike = [replace(run, folder=named[0].folder) for run in named]
    assert [len(runs) for runs in by_setting(alike).values()] == [2]


def test_strategies_are_held_against_random_selection_of_the_same_budget(tmp_path: Path) -> None:
    groups = by_setting(
        [
            *(tuned(tmp_path, name, "budget=3") for name in ("random", "presel")),
            *(tuned(tmp_path, name, "budget=6", budget=6) for name in ("random", "presel")),
            tuned(tmp_path, "typiclust", budget=9),
            tuned(tmp_path, "full", budget=20),
        ]
    )

    def held_against(strategy: str) -> list[str | None]:
        found = [counterpart(runs, strategy, groups) for runs in groups.values()]
        return [next((name for name, runs in groups.items() if runs == others), None) for others in found]

    # Of two budgets of random selection, the whole pool belongs to neither.
    random = ["random budget=3", "random budget=6"]
    assert held_against("random") == [random[0], random[0], random[1], random[1], None, None]
    assert held_against("full") == ["full"] * 6
    # The whole pool is held against what takes less only where nothing has the same budget.
    sweep = [
        tuned(tmp_path / "sweep", name, f"budget={budget}", budget=budget)
        for name in ("random", "presel")
        for budget in (3, 20)
    ]
    groups = by_setting(sweep)
    assert counterpart(groups["presel budget=3"], "random", groups) == groups["random budget=3"]
    assert counterpart(groups["presel budget=20"], "random", groups) == groups["random budget=20"]
    # Settings that mean nothing to random selection split its runs, which are of one kind.
    random = [tuned(tmp_path, "random", f"tau={seed}", seed=seed) for seed in range(3)]
    presel = [tuned(tmp_path, "presel", seed=seed) for seed in range(3)]
    assert counterpart(presel, "random", by_setting([*random, *presel])) == random


def test_strategies_are_held_against_random_selection_under_the_same_conditions(tmp_path: Path) -> None:
    presel, random = tuned(tmp_path, "presel"), tuned(tmp_path, "random", tune="digits")
    assert counterpart([presel], "random", {"presel": [presel], "random": [random]}) == []
    with pytest.raises(PreselError, match="are both 'presel', but differ in their tuning"):
        by_setting([presel, tuned(tmp_path, "presel", seed=1, tune="digits")])
    with pytest.raises(PreselError, match="are both 'presel', but differ in their pool"):
        by_setting([presel, tuned(tmp_path / "other", "presel", seed=1)])


def test_the_paper_is_cited_at_its_own_budget(tmp_path: Path) -> None:
    groups = by_setting([tuned(tmp_path, "presel", budget=3), tuned(tmp_path, "full", budget=20)])
    table = results(groups, ["table3_vicuna_13b", "visnec_vision_flan"])
    assert table["published_table3_vicuna_13b"].tolist() == pytest.approx([0.983, 1])
    assert table["published_visnec_vision_flan"].tolist() == pytest.approx([1.006, 1])
    ablation = by_setting([tuned(tmp_path, "presel", "strategy.pick=random", budget=3)])
    assert list(ablation) == ["presel"]
    assert results(ablation, ["table1_llava665k"])["published_table1_llava665k"].isna().all()
    runs = [tuned(tmp_path, "presel", f"budget={budget}", budget=budget) for budget in (3, 6)]
    published = results(by_setting(runs), ["table1_llava665k"])["published_table1_llava665k"]
    assert published.isna().all()


def test_published_tables_stand_last_and_side_by_side(tmp_path: Path) -> None:
    names = ["table1_llava665k", "visnec_llava665k", "table3_vicuna_13b"]
    shown = formatted(results(by_setting([tuned(tmp_path, "typiclust")]), names), ["vqa"], names)
    # The third has no such strategy.
    assert shown.iloc[0, -3:].to_dict() == {
        "vqa": "50.0",
        "Rel. in PreSel's Table 1": "96.8",
        "Rel. in VisNec's table (LLaVA-665K)": "96.9",
    }


def test_labeled_samples_outside_the_pool_stand_in_the_row(tmp_path: Path) -> None:
    runs = [tuned(tmp_path, "icons"), tuned(tmp_path, "tive")]
    runs[0].stages["validation_samples"] = finished(tmp_path / "samples", samples=9)
    table = results(by_setting(runs), [])
    assert formatted(table, ["vqa"], [])["read first"].tolist() == ["0.0 + 9 labeled", "0.0"]
    assert ["Labeled" in note for note in notes_on(by_setting(runs), table, [])].count(True) == 1
    assert not any("Labeled" in note for note in notes_on(by_setting(runs[1:]), table[1:], []))


def test_text_that_is_tuned_on_besides_is_told(tmp_path: Path) -> None:
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


def test_why_there_is_no_relative_score_is_told(tmp_path: Path) -> None:
    runs = [tuned(tmp_path, "presel", score=0.4), tuned(tmp_path, "full", budget=20, score=0.0)]
    for count, told in ((1, "there are no runs of strategy=full"), (2, "the full pool's model scores 0 on ")):
        groups = by_setting(runs[:count])
        (note,) = [one for one in notes_on(groups, results(groups, []), []) if one.startswith("No Rel.")]
        assert told in note


def test_rows_with_fewer_seeds_than_random_are_told(tmp_path: Path) -> None:
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


def test_agreement_with_published_orders_is_told(tmp_path: Path) -> None:
    # Published: 95.7, 96.8, 90.3, 93.0 and 97.9; ours swap the first two.
    ours = {"random": 0.7, "typiclust": 0.6, "clip_score": 0.3, "el2n": 0.4, "presel": 0.8, "own": 0.9}
    whole = finished(tmp_path / "whole").folder
    (whole / "scores.json").write_text('{"vqa": 1.0}')
    finished(whole)
    runs = [tuned(tmp_path, name, score=score, full_evaluation=whole) for name, score in ours.items()]
    runs.append(tuned(tmp_path, "full", budget=20, score=1.0, full_evaluation=whole))
    names = ["table1_llava665k", "table3_vicuna_13b"]

    def told(runs: list[RunRecord]) -> list[str]:
        groups = by_setting(runs)
        return [note for note in notes_on(groups, results(groups, names), names) if "correlation" in note]

    # 1 - 6 (1 + 1) / (5 (25 - 1)).
    assert told(runs) == [
        "Spearman's rank correlation of mean Rel. with Rel. in PreSel's Table 1 (strategies in both: 5): "
        "+0.90.",
        "No rank correlation of mean Rel. with Rel. in PreSel's Table 3 (Vicuna-13B) (strategies in both: "
        "2): so few say nothing.",
    ]
    assert told(runs[-2:]) == []


def test_rank_correlation_with_ties() -> None:
    ours, others = [1.0, 2.0, 2.0, 5.0, 4.0], [3.0, 1.0, 2.0, 9.0, 9.0]
    assert rank_correlation(ours, others) == pytest.approx(stats.spearmanr(ours, others).statistic)


def test_jobs_of_a_sweep_come_in_their_order(tmp_path: Path) -> None:
    for number in range(12):
        recorded(tmp_path / str(number), "random", number, {"vqa": 0.5}).write()
    assert [run.seed for run in find_runs([tmp_path])] == list(range(12))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"tuned": {', "is damaged (Expecting property name"),
        ('{"seed": 0}', "was written by another version of presel"),
        ('{"version": 1}', "is damaged (strategy: Field required)"),
        ("5", "is damaged (it holds no JSON object)"),
    ],
)
def test_a_damaged_run_is_named(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(PreselError, match=f"run.json {re.escape(reason)}.*; run the same command again"):
        find_runs([tmp_path])


def test_runs_without_scores_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(PreselError, match=r"none of these runs was evaluated; name folders .*until="):
        evaluated([recorded(tmp_path, "random")])
    foreign = recorded(tmp_path, "random", scores={"vqa": 0.5})
    with pytest.raises(PreselError, match=r"this run has no (images|selection|evaluation); run the same"):
        evaluated([foreign])


def test_weights_need_not_be_where_scores_are_compared(tmp_path: Path) -> None:
    stages = {}
    for role in ("images", "selection", "evaluation", "model"):
        (tmp_path / role).mkdir()
        (tmp_path / role / "file").write_text("written")
        stages[role] = finished(tmp_path / role)

    def read_back() -> list[RunRecord]:
        found = {role: replace(stage) for role, stage in stages.items()}
        return evaluated([recorded(tmp_path, "random", scores={"vqa": 0.5}, stages=found)])

    (tmp_path / "model" / "file").unlink()
    assert read_back()
    (tmp_path / "selection" / "file").write_text("changed")
    with pytest.raises(PreselError, match="selection/file does not hold what was written"):
        read_back()
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(PreselError, match="the result of stage 'model' is gone"):
        read_back()


def test_tables_that_belong_to_no_run_are_told(tmp_path: Path) -> None:
    selection = pd.DataFrame({"id": ["a", "b"], "task": "vqa", "selected": True})
    losses = pd.DataFrame({"id": ["b"], "loss_with_question": 1.0, "loss_without_question": 2.0})

    def read_back() -> RunRecord:
        selection.to_parquet(tmp_path / "selection.parquet")
        losses.to_parquet(tmp_path / "relevance.parquet")
        stage = finished(tmp_path)
        return recorded(tmp_path, "presel", stages={"selection": stage, "relevance": stage})

    relevance = read_back().relevance
    assert relevance is not None
    assert relevance["task"].tolist() == ["vqa"]
    losses["id"] = "c"
    with pytest.raises(PreselError, match=r"sample 'c' of its reference set is not in its pool"):
        _ = read_back().relevance
    selection = selection.drop(columns="task")
    with pytest.raises(PreselError, match=r"selection\.parquet: .*it has no column 'task'"):
        _ = read_back().selection


def test_every_folder_must_hold_a_run(tmp_path: Path) -> None:
    with pytest.raises(PreselError, match=r"mistyped: no finished run .* that ended with until=evaluation"):
        find_runs([tmp_path / "mistyped"])


def test_the_papers_figures_stand_beside_ours() -> None:
    assert published_relative("table1_llava665k")["presel"] == pytest.approx(0.979)


def test_rel_of_every_published_row_is_what_our_formula_gives() -> None:
    tables = asset(PRESEL)["tables"]
    blocks = {
        "table1": tables["table1_llava665k"],
        "table2": tables["table2_vision_flan"],
        **tables["table3_architectures"],
        **asset(VISNEC)["tables"],
    }
    otherwise = {}
    for name, rows in blocks.items():
        (full,) = [row["scores"] for row in rows if row["method"] == "full"]
        for row in rows:
            ours = relative_score(row["scores"], full)
            assert ours is not None
            if 100 * ours != pytest.approx(row["relative"], abs=0.051):
                otherwise[name, row["method"]] = (round(100 * ours, 1), row["relative"])
    assert sum(map(len, blocks.values())) == 52
    # Rows whose published scores do not give their published Rel.
    assert otherwise == {
        ("table1", "el2n"): (93.1, 93.0),
        ("llava665k", "ifd"): (92.2, 92.1),
        ("llava665k", "clip_score"): (91.0, 92.0),
        ("llava665k", "coido"): (98.1, 97.7),
        ("vision_flan", "typiclust"): (92.6, 92.0),
        ("vision_flan", "clip_score"): (92.8, 92.2),
        ("vision_flan", "visnec"): (115.7, 115.8),
    }


def asset(name: str) -> Any:
    return json.loads((files("presel") / "assets" / name).read_text(encoding="utf-8"))


def test_visnecs_tables_repeat_presels_figures_of_the_common_strategies() -> None:
    differing = set()
    for table, original in (("llava665k", "table1_llava665k"), ("vision_flan", "table2_vision_flan")):
        presel = {row["method"]: row["scores"] for row in asset(PRESEL)["tables"][original]}
        for row in asset(VISNEC)["tables"][table]:
            known = presel.get(row["method"], {}).keys() & row["scores"].keys()
            differing |= {
                (row["method"], name)
                for name in known
                if row["method"] != "full" and row["scores"][name] != presel[row["method"]][name]
            }
    assert differing == {("self_filter", "POPE"), ("presel", "VQAv2")}


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
    assert re.search(r"The spread of random over seeds is [\d.]+, .* a third of its distance", shown)
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
    assert "So few seeds cannot tell from chance how these differ from random selection: presel" in page
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
