"""What the released code returns on made-up inputs, reproduced."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from presel.importance import instruction_relevance, task_scores, task_weights
from presel.selection import allocate_tasks, cluster, number_of_clusters, select_from_task, task_centrality

PARITY = Path(__file__).parents[1] / "parity"
ALLOCATIONS = json.loads((PARITY / "allocation.json").read_text())
SELECTIONS = json.loads((PARITY / "selection.json").read_text())
ARRAYS = np.load(PARITY / "selection.npz")
TASKS = sorted({name.split(".")[0] for name in ARRAYS.files})


def released_inputs(task: str) -> dict[str, Any]:
    features = ARRAYS[f"{task}.features"]
    return {
        "features": features / np.linalg.norm(features, axis=1, keepdims=True),
        "labels": ARRAYS[f"{task}.labels"],
        "available": ~np.isin(ARRAYS[f"{task}.ids"], ARRAYS[f"{task}.reference_ids"]),
    }


def test_task_scores() -> None:
    case = json.loads((PARITY / "task_importance.json").read_text())
    reference = set(case["reference_ids"])
    losses = [
        {row["unique_idx"]: row["loss"] for row in case[name] if row["unique_idx"] in reference}
        for name in ("loss_with_question", "loss_without_question")
    ]
    task_of = {image: task for task, images in case["tasks"].items() for image in images}
    ids = sorted(losses[0].keys() & losses[1].keys())
    irs = instruction_relevance(*([loss[i] for i in ids] for loss in losses))
    scores = task_scores(irs, [task_of[i] for i in ids])
    np.testing.assert_allclose(
        [scores[task] for task in case["tasks"]], case["expected_task_scores"], atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("case", ALLOCATIONS, ids=lambda case: f"{len(case['s'])}-{case['budget']}")
def test_weights_and_task_budgets(case: dict[str, Any]) -> None:
    weights = list(task_weights(dict(enumerate(case["s"]))).values())
    np.testing.assert_allclose(weights, case["weights"], atol=1e-9, rtol=0)
    assert task_weights(dict(enumerate(case["s"])), tau=case["tau"])[0] == pytest.approx(weights[0], abs=1e-9)
    for mode in ("released_llava", "released_vision_flan"):
        assert allocate_tasks(weights, case["sizes"], case["budget"], mode=mode).tolist() == case[mode]


@pytest.mark.parametrize("task", TASKS)
def test_centrality(task: str) -> None:
    expected = ARRAYS[f"{task}.centrality_k5"]
    inputs = released_inputs(task)
    ours = task_centrality(**inputs)
    scored = ~np.isnan(expected)
    np.testing.assert_allclose(ours[scored], expected[scored], atol=2e-6)
    assert (ours[inputs["available"] & ~scored] == 1).all()


@pytest.mark.parametrize("key", SELECTIONS)
def test_selection_equals_the_released_code(key: str) -> None:
    task, budget = key.split("/N=")
    ids, features = ARRAYS[f"{task}.ids"], ARRAYS[f"{task}.features"]
    picks = select_from_task(**released_inputs(task), budget=int(budget), mode="released", ids=ids)
    expected = np.searchsorted(ids, SELECTIONS[key])
    assert len(picks) == len(expected)
    # Sets of vectors, because equal images may stand for each other.
    assert sorted(features[picks].tolist()) == sorted(features[expected].tolist())


@pytest.mark.parametrize("task", TASKS)
def test_released_clusters(task: str) -> None:
    inputs = released_inputs(task)
    n_clusters = number_of_clusters(len(inputs["labels"]))
    labels, _ = cluster(inputs["features"], n_clusters, seed=12345, backend="released")
    # All rows with the version at hand; another scikit-learn may draw another start.
    assert np.mean(labels == inputs["labels"]) > 0.99
