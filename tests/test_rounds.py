"""Strategies in rounds: what is bought when, which models score it, and that nothing is bought twice."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.component import component
from presel.errors import PreselError
from presel.instructions.ledger import LEDGER
from presel.storage.integrity import MANIFEST
from presel.strategies.base import SelectionContext
from presel.strategies.progress import Progress, learning_progress
from presel.strategies.rounds import RoundContext, RoundStrategy
from tests.helpers import (
    OWN_STORE,
    TINY,
    Program,
    command,
    environment,
    last_run,
    on_folder,
    read_records,
    runs,
    stage_lines,
    summary,
)
from tests.test_label_studio import export
from tests.waiting import jobs

PROGRESS = ("strategy=progress", "strategy.rounds=3", "budget=0.2")


def test_a_run_buys_tunes_and_scores_round_by_round(in_process: Program, tmp_path: Path) -> None:
    done = in_process.succeeds("run", *TINY, *PROGRESS)
    # Those before the last need not spend it.
    assert "where the budget is" not in done.stdout + done.stderr
    record = last_run(tmp_path)
    assert [role for role in record.stages if role.startswith(("round_", "reference_m", "selection"))] == [
        "round_1.selection",
        "round_1.instructions",
        "round_1.before",
        "reference_model",
        "round_1.after",
        "round_1.scores",
        "round_2.selection",
        "round_2.instructions",
        "round_2.before",
        "round_1.training_set",
        "round_1.model",
        "round_2.after",
        "round_2.scores",
        "selection",
    ]

    # 40 images: 11 of the reference set, and 9, 10 and 10 in the rounds.
    ledgers = {
        role: pd.read_parquet(record.result(role) / LEDGER)
        for role in ("reference_instructions", "round_1.instructions", "round_2.instructions", "instructions")
    }
    assert [table["stage"].unique().tolist() for table in ledgers.values()] == [
        ["reference"],
        ["round 1"],
        ["round 2"],
        ledgers["instructions"]["stage"].unique().tolist(),
    ]
    final = ledgers["instructions"].set_index("id")["stage"]
    assert final.value_counts().to_dict() == {"reference": 11, "round 1": 9, "round 2": 10, "selection": 10}
    before = pd.concat(list(ledgers.values())[:3]).set_index("id")["stage"]
    assert before.index.is_unique
    assert final[before.index].equals(before)
    assert summary(tmp_path).loc["progress", "requested"] == 0.2

    # Models are tuned on all that was bought before a round, whose samples are new to both.
    keys = {role: stage.key for role, stage in record.stages.items()}
    scored_by = {
        role: record.stages[role].manifest["settings"]["model"].get("key")
        for role in ("round_1.before", "round_1.after", "round_2.before", "round_2.after")
    }
    assert scored_by == {
        "round_1.before": None,
        "round_1.after": keys["reference_model"],
        "round_2.before": keys["reference_model"],
        "round_2.after": keys["round_1.model"],
    }
    trained = read_records(record.result("round_1.training_set") / "train.json")
    assert {one.id for one in trained} == set(final.index[final.isin(["reference", "round 1"])])

    table = record.selection.set_index("id")
    chosen = table[table["selected"]]
    assert set(chosen.index) == set(final.index)
    assert (
        chosen["round"]
        .map({0: "reference", 1: "round 1", 2: "round 2", 3: "selection"})
        .equals(final[chosen.index].rename("round"))
    )
    for number in (1, 2):
        for name in ("before", "after"):
            scores = pd.read_parquet(record.result(f"round_{number}.{name}") / "relevance.parquet")
            losses = scores.set_index("id")["loss_with_question"]
            assert chosen.loc[losses.index, f"loss_{name}"].tolist() == losses.tolist()
    assert chosen.loc[chosen["round"].isin([0, 3]), "loss_before"].isna().all()
    assert chosen["progress"].notna().tolist() == (chosen["round"] >= 2).tolist()


def test_annotators_are_waited_for_in_every_round_and_asked_once(
    in_process: Program, pool_folder: Path
) -> None:
    people = ["instructions=label_studio", "until=instructions", OWN_STORE]
    arguments = ["run", *on_folder(pool_folder), *PROGRESS, *people]
    asked: list[set[str]] = []
    for _ in range(4):
        result = in_process(*arguments)
        assert result.returncode == 3, result.stderr
        job = jobs(pool_folder / "outputs" / "answers")[-1]
        asked.append({task["data"]["uid"] for task in export(job)})
    result = in_process.succeeds(*arguments)
    # 12 images, of which the reference set has 3.
    assert [len(names) for names in asked] == [3, 3, 3, 3]
    assert len(set().union(*asked)) == 12
    lines = stage_lines(result.stdout)
    assert lines["model (round 1)"] == lines["round_scores (round 2)"] == "reused"
    table = last_run(pool_folder).selection
    assert [set(table.loc[table["round"] == number, "id"]) for number in range(4)] == asked


@pytest.mark.slow
def test_kill_9_between_two_rounds_changes_nothing(in_process: Program, tmp_path: Path) -> None:
    whole, cut = (("run", *TINY, *PROGRESS, "until=selection", *more) for more in ([], [OWN_STORE]))
    run = subprocess.Popen(command(*cut), cwd=tmp_path, env=environment(), start_new_session=True)
    store = tmp_path / "outputs" / "store"
    # Round 1 is over, and its model, the second one, is being tuned.
    while len(list(store.glob("model/*/"))) < 2:
        assert run.poll() is None
        time.sleep(0.002)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert len(list(store.glob(f"model/*/{MANIFEST}"))) == 1
    bought = {file: file.stat().st_mtime_ns for file in store.glob(f"instructions/*/{LEDGER}")}
    assert len(bought) == 3
    in_process.succeeds(*cut)
    in_process.succeeds(*whole)
    assert {file: file.stat().st_mtime_ns for file in bought} == bought
    ours, theirs = runs(tmp_path)
    assert ours.stages["selection"].key == theirs.stages["selection"].key
    pd.testing.assert_frame_equal(ours.selection, theirs.selection)


@pytest.mark.parametrize("program", ["run", "doctor"])
def test_a_budget_with_less_than_an_image_for_each_round_is_refused_at_once(
    program: str, in_process: Program
) -> None:
    # The reference set has 11 images.
    settings = ("strategy=progress", "strategy.rounds=4", "budget=14", "until=selection")
    result = in_process(program, *TINY, *settings)
    said = " ".join((result.stdout + result.stderr).split())
    assert "budget=14 leaves 3 images beside the reference set, too few for strategy.rounds=4; raise" in said
    assert "model (" not in result.stdout


def test_the_doctor_counts_the_samples_of_every_round(in_process: Program, pool_folder: Path) -> None:
    arguments = ("doctor", *on_folder(pool_folder), *PROGRESS, "until=selection", OWN_STORE)
    said = "12 images, 3 of them for the reference set, the others in 3 rounds"
    assert said in in_process(*arguments).stdout
    told = json.loads(in_process(*arguments, "--json", "-").stdout)
    images: dict[str, list[int]] = {}
    for stage in told["stages"]:
        images.setdefault(stage["stage"], []).append(stage["images"])
    expected = {
        "instructions (reference)": [3],
        "instructions (round 1)": [3],
        "instructions (round 2)": [3],
        "relevance (round 1, base)": [3],
        "relevance (round 2)": [3, 3],
        "training_set (round 1)": [6],
        "model (round 1)": [6],
        "round_scores (round 2)": [3],
    }
    assert {label: images[label] for label in expected} == expected


@component
class Chosen(RoundStrategy):
    """Selects as a function of the context says."""

    ids: ClassVar[Callable[[RoundContext], Sequence[str]]]

    def select_round(self, context: RoundContext) -> pd.DataFrame:
        return pd.DataFrame({"id": pd.Series(type(self).ids(context), dtype=str)})


def context(budget: int = 9, **rounds: pd.DataFrame) -> SelectionContext:
    """That of a pool of ten images a to j, two of which are the reference set."""
    return SelectionContext(
        pool=pd.DataFrame({"id": list("abcdefghij"), "image": "", "task": ["x", "y"] * 5}),
        budget=budget,
        rng=np.random.default_rng(0),
        results={"reference": pd.DataFrame({"id": ["c", "f"]}), **rounds},
    )


def test_rounds_share_the_budget_and_make_up_for_what_one_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RoundContext] = []

    def first(context: RoundContext) -> Sequence[str]:
        seen.append(context)
        left = context.pool[~context.pool["id"].isin(context.bought["id"])]
        return left["id"].tolist()[: context.size if context.round > 1 else 1]

    monkeypatch.setattr(Chosen, "ids", first, raising=False)
    rounds: dict[str, pd.DataFrame] = {}
    for number in (1, 2, 3):
        table = Chosen(rounds=3).select(context(**rounds))
        rounds[f"round_{number}"] = table[table["round"] == number]
    # Seven images beside the reference set.
    assert [one.size for one in seen] == [2, 3, 3]
    assert [one.round for one in seen] == [1, 2, 3]
    assert "".join(table["id"]) == "cfabdeghi"
    assert table["round"].tolist() == [0, 0, 1, 2, 2, 2, 3, 3, 3]
    assert seen[2].bought["task"].tolist()[:2] == ["x", "y"]
    # No round draws what another drew.
    assert len({one.rng.integers(2**62) for one in seen}) == 3


@pytest.mark.parametrize("ids", ["", "abd"])
def test_a_round_that_takes_none_or_too_many_is_refused(ids: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chosen, "ids", lambda context: list(ids), raising=False)
    with pytest.raises(PreselError, match=f"strategy Chosen chose {len(ids)} images in round 1; .* here 2"):
        Chosen(rounds=3).select(context())


def test_a_single_round_needs_no_image_beside_the_reference_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chosen, "ids", lambda context: [], raising=False)
    assert Chosen(rounds=1).select(context(budget=2))["id"].tolist() == ["c", "f"]


def test_progress_by_hand() -> None:
    # Skills 0 and 1 are of task 0, skills 2 and 3 of task 1.
    skills, tasks = np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1])
    before, after = np.array([2.0, 4.0, 2.0, 1.0]), np.array([1.0, 2.0, 2.0, 1.5])
    assert learning_progress(before, after, skills, tasks).tolist() == [0.5, 0, -0.5, -0.5]
    # Skill 1 has too few samples, and the progress of its task; task 1 has too few, and that of all.
    assert learning_progress(before, after, skills, tasks, 2).tolist() == [0.5, 0.375, 2.5 / 9, 2.5 / 9]
    assert learning_progress(before, after, skills, tasks, 9).tolist() == pytest.approx([2.5 / 9] * 4)
    assert learning_progress(np.zeros(4), after, skills, tasks).tolist() == [0] * 4


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 1000))
def test_progress_is_that_of_the_smallest_group_with_enough_samples(n: int, least: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    tasks = np.array([0, 0, 1, 1, 1, 2])
    skills = generator.integers(6, size=n)
    before, after = generator.random((2, n))
    found = learning_progress(before, after, skills, tasks, least)
    for skill in range(6):
        groups = [skills == skill, tasks[skills] == tasks[skill], np.full(n, True)]
        group = next((group for group in groups if group.sum() >= least), groups[-1])
        assert found[skill] == pytest.approx(1 - after[group].sum() / before[group].sum())


def second_round(order: Any) -> RoundContext:
    """The second round on a pool whose first half of clusters was learned, with its tables in some order."""
    ids = [f"{number:03}" for number in range(200)]
    clusters = pd.DataFrame({"id": ids, "task": np.repeat(["x", "y"], 100), "cluster": np.tile([0, 1], 100)})
    bought = clusters.iloc[::4].assign(round=1, loss_before=1.0, loss_after=np.linspace(0.3, 0.9, 50))
    return RoundContext(
        pool=clusters[["id", "task"]].iloc[order],
        budget=100,
        rng=np.random.default_rng(0),
        results={"clusters": clusters.iloc[order]},
        round=2,
        size=40,
        bought=bought.sample(frac=1, random_state=int(order[0])),
    )


def test_progress_prefers_what_is_learned_fast_and_ignores_the_order_of_rows() -> None:
    context = second_round(np.arange(200))
    strategy = Progress(tau=0.1, random_share=0.0)
    table = strategy.select_round(context)
    assert len(table) == 40
    assert not set(table["id"]) & set(context.bought["id"])
    # The losses of task x fell by more. Its cluster 1 has no samples, and the progress of the task.
    assert (table["id"] < "100").mean() > 0.9
    assert set(table["progress"].round(3)) <= {0.553, 0.247}
    shuffled = strategy.select_round(second_round(np.random.default_rng(3).permutation(200)))
    pd.testing.assert_frame_equal(table, shuffled)
    # A high temperature takes from all alike.
    even = Progress(tau=1e6, random_share=0.0).select_round(second_round(np.arange(200)))
    assert 0.25 < (even["id"] < "100").mean() < 0.75
