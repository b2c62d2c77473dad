"""Neighbor centrality, and the choice inside one task."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from presel.selection import (
    centrality,
    most_central,
    neighbor_centrality,
    select_from_task,
    task_centrality,
)
from tests.selection.mixtures import mixture


def by_hand(vectors: np.ndarray, k: int) -> np.ndarray:
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.array(
        [np.sort(np.delete(unit @ unit[i], i))[-min(k, len(unit) - 1) :].mean() for i in range(len(unit))]
    )


@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 5), (5, 9), (60, 5), (60, 1)])
def test_mean_cosine_to_the_nearest(n: int, k: int) -> None:
    vectors = 3 * mixture(n, 16, 3)
    np.testing.assert_allclose(neighbor_centrality(vectors, k), by_hand(vectors, k), atol=1e-12)


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centrality, "_TILE_ROWS", 7)
    monkeypatch.setattr(centrality, "_TILE_COLUMNS", 3)
    vectors = mixture(60, 16, 3)
    np.testing.assert_allclose(neighbor_centrality(vectors, 5), by_hand(vectors, 5), atol=1e-12)


def test_a_single_image_scores_one() -> None:
    assert neighbor_centrality(np.ones((1, 4), dtype=np.float32)).tolist() == [1.0]


def task(n: int = 80, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    vectors = mixture(n, 12, 4, seed)
    vectors[n // 2 : n // 2 + 6] = vectors[3]  # equal images, so that ties occur
    return {
        "features": vectors,
        "labels": rng.integers(0, 4, n) * 3,
        "available": rng.random(n) > 0.1,
    }


def test_clusters_ascend_and_centrality_descends() -> None:
    given_ = task()
    picks = select_from_task(**given_, budget=20)
    scores = task_centrality(**given_)
    assert len(picks) == len(set(picks.tolist())) == 20
    assert given_["available"][picks].all()
    keys = [(given_["labels"][row], -round(scores[row], 9), row) for row in picks]
    assert keys == sorted(keys)
    assert (np.isnan(scores) == ~given_["available"]).all()
    assert (picks == most_central(scores, given_["labels"], given_["available"], 20)).all()


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(0, 90), st.sampled_from(["cluster", "task"]))
def test_any_order_of_rows_gives_the_same_selection(seed: int, budget: int, scope: Any) -> None:
    given_ = task(seed=seed % 5)
    ids = np.array([f"image_{i:03d}" for i in range(80)])
    order = np.random.default_rng(seed).permutation(80)
    shuffled = {name: values[order] for name, values in given_.items()}
    first = ids[select_from_task(**given_, budget=budget, ids=ids, scope=scope)]
    second = ids[order][select_from_task(**shuffled, budget=budget, ids=ids[order], scope=scope)]
    assert first.tolist() == second.tolist()


def test_names_do_not_matter_without_ties() -> None:
    given_ = task() | {"features": mixture(80, 12, 4, seed=9)}
    renamed = [f"z{(i * 37) % 80}" for i in range(80)]
    assert (select_from_task(**given_, budget=20) == select_from_task(**given_, budget=20, ids=renamed)).all()


def test_equal_images_go_by_id() -> None:
    same = {
        "features": np.ones((6, 4), np.float32),
        "labels": np.zeros(6, int),
        "available": np.ones(6, bool),
    }
    assert select_from_task(**same, budget=3).tolist() == [0, 1, 2]
    assert select_from_task(**same, budget=3, ids=list("fedcba")).tolist() == [5, 4, 3]
    assert select_from_task(**same, budget=2, ids=[10, 9, 100, 3, 8, 7]).tolist() == [3, 5]


def test_more_than_available_takes_all() -> None:
    given_ = task()
    assert len(select_from_task(**given_, budget=500)) == given_["available"].sum()
    assert not len(select_from_task(**(given_ | {"available": np.zeros(80, bool)}), budget=5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(79, int)}, r"labels has shape \(79,\) for 80"),
        ({"labels": np.zeros(80)}, "whole numbers"),
        ({"labels": np.full(80, -1)}, "at least 0"),
        ({"available": np.ones(79, bool)}, "available has shape"),
        ({"available": np.ones(80, int)}, "must be bool"),
        ({"features": np.ones(80, np.float32)}, "features have shape"),
        ({"features": np.zeros((80, 4), np.float32)}, "row 0 is all zeros"),
        ({"k": 0}, "k is 0"),
        ({"scope": "world"}, "scope 'world' is unknown"),
        ({"mode": "fair"}, "mode 'fair' is unknown"),
        ({"ids": ["a"] * 80}, "the id a occurs twice"),
        ({"ids": ["a"]}, "1 ids for 80 vectors"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_from_task(**({**task(), "budget": 5} | change))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.ones((80, 2)), "it must be one score per image"),
        (np.ones(79), r"labels has shape \(80,\) for 79 images"),
        (np.full(80, np.nan), "centrality has no score for row 0, which is available"),
    ],
)
def test_scores_that_cannot_be_ranked(scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        most_central(scores, task()["labels"], np.ones(80, bool), 5)
