"""Which runs are seeds of one setting, what they are held against, and what a run must have left."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from presel.errors import PreselError
from presel.report.grouping import by_setting, counterpart, evaluated, find_runs
from presel.report.summary import job_names
from presel.runs import RunRecord
from presel.storage.integrity import read_manifest, write_manifest
from tests.chosen import finished
from tests.runs import recorded, tuned


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


def _of_version(run: RunRecord, role: str, **changes: Any) -> RunRecord:
    """The run with another manifest of one stage."""
    folder = run.stages[role].folder
    write_manifest(folder, read_manifest(folder) | changes)
    return replace(run, stages=run.stages | {role: replace(run.stages[role])})


@pytest.mark.parametrize("role", ["selection", "instructions", "model", "evaluation"])
def test_results_of_other_code_are_not_compared(tmp_path: Path, role: str) -> None:
    presel, random, other = (
        tuned(tmp_path, "presel"),
        tuned(tmp_path, "random"),
        tuned(tmp_path, "presel", seed=1),
    )
    groups = {"presel": [presel], "random": [random]}
    assert counterpart([presel], "random", groups) == [random]
    assert counterpart([_of_version(presel, role, version=2)], "random", groups) == []
    with pytest.raises(
        PreselError, match=f"are both 'presel', but differ in their version of stage '{role}'; re"
    ):
        by_setting([other, _of_version(presel, role, version=2)])


def test_seeds_of_one_setting_are_of_one_code(tmp_path: Path) -> None:
    runs = [tuned(tmp_path, "presel", seed=seed) for seed in range(2)]
    for number, run in enumerate(runs):
        run.stages["clusters"] = finished(run.folder / "clusters")
        runs[number] = _of_version(run, "clusters", version=number)
    with pytest.raises(PreselError, match="but differ in their version of stage 'clusters'; report on"):
        by_setting(runs)
    alike = [_of_version(run, "clusters", version=1) for run in runs]
    assert [len(group) for group in by_setting(alike).values()] == [2]
    edited = _of_version(alike[1], "selection", settings={"seed": 1, "strategy": {"class": "edited"}})
    with pytest.raises(PreselError, match="but differ in their version of strategy 'presel'; report on"):
        by_setting([alike[0], edited])


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


def test_tables_that_belong_to_no_run_are_reported(tmp_path: Path) -> None:
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
