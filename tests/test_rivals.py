"""Rival strategies against answers by hand or brute force."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.errors import PreselError
from presel.instructions.ledger import LEDGER
from presel.selection.feature_rows import Features
from presel.strategies.base import SelectionContext
from presel.strategies.ranking import El2n, Ifd, Perplexity, ranked_slice
from presel.strategies.typiclust import TypiClust, most_typical, round_robin
from tests.helpers import Program, on_folder, stage_files
from tests.selection.mixtures import mixture

SCORES = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d", "e", "f"],
        "loss_with_question": [0.1, 0.9, 0.5, 0.5, 2.0, 0.3],
        "loss_without_question": [1.0, 1.0, 0.5, 1.0, 1.0, 1.0],
        "el2n": [0.2, 0.9, 0.5, 0.4, 0.6, 0.1],
    }
)


def seen(budget: int, seed: int = 0, **results: Any) -> SelectionContext:
    return SelectionContext(
        pool=pd.DataFrame({"id": list("abcdef")}),
        budget=budget,
        rng=np.random.default_rng(seed),
        results=results,
    )


@pytest.mark.parametrize(
    ("strategy", "chosen"),
    [
        (El2n(), "be"),
        (El2n(slice="middle"), "cd"),
        (El2n(slice="bottom"), "af"),
        (Perplexity(), "eb"),
        (Perplexity(slice="middle"), "cd"),
        (Perplexity(slice="bottom"), "fa"),
        # c has the ratio 1 and stays, e has 2 and is dropped.
        (Ifd(), "cb"),
    ],
)
def test_the_slice_of_the_ranking(strategy: Any, chosen: str) -> None:
    shuffled = SCORES.sample(frac=1, random_state=3)
    assert "".join(strategy.select(seen(2, scores=shuffled))["id"]) == chosen


def test_ifd_may_be_left_with_fewer_than_the_budget() -> None:
    assert set(Ifd().select(seen(6, scores=SCORES))["id"]) == set("abcdf")
    # A loss without question of 0 leaves the difficulty undefined.
    certain = SCORES.assign(loss_without_question=[1.0, 0.0, 0.5, 1.0, 1.0, 1.0])
    assert set(Ifd().select(seen(6, scores=certain))["id"]) == set("acdf")


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.integers(1, 30),
    st.sampled_from(["top", "middle", "bottom"]),
)
def test_slices_are_runs_of_the_ranking(scores: list[int], budget: int, part: Any) -> None:
    ids = pd.Series([f"{number:02}" for number in range(len(scores))])
    chosen = ranked_slice(ids, np.array(scores, dtype=float), budget, part)
    ranking = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    places = [ranking.index(int(name)) for name in chosen["id"]]
    assert places == list(range(places[0], places[0] + min(budget, len(scores))))
    above, below = places[0], len(scores) - 1 - places[-1]
    assert {"top": above == 0, "bottom": below == 0, "middle": below - above in (0, 1)}[part]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(0, 300))
def test_clusters_give_round_robin_the_larger_first(sizes: list[int], budget: int) -> None:
    quotas = round_robin(np.array(sizes), budget)
    expected = [0] * len(sizes)
    for _ in range(min(budget, sum(sizes))):
        able = [label for label, size in enumerate(sizes) if expected[label] < size]
        expected[min(able, key=lambda label: (expected[label], -sizes[label], label))] += 1
    assert quotas.tolist() == expected


@pytest.mark.parametrize("neighbors", [1, 4, 20])
@pytest.mark.parametrize(("distance", "power"), [("squared", 2), ("euclidean", 1)])
def test_the_most_typical_image_by_brute_force(neighbors: int, distance: Any, power: int) -> None:
    vectors = mixture(30, 8, 3, seed=neighbors)
    left = list(range(30))
    for pick in most_typical(vectors, 25, neighbors, distance):
        typicality = {}
        for row in left:
            others = sorted(
                np.linalg.norm(vectors[row] - vectors[other]) ** power for other in left if other != row
            )
            nearest = others[: max(1, min(neighbors, len(left) // 2))]
            typicality[row] = 1 / (np.mean(nearest) + 1e-5)
        assert typicality[int(pick)] == pytest.approx(max(typicality.values()), rel=1e-5)
        left.remove(int(pick))


def test_typicality_goes_by_squared_distances_as_released_or_by_plain_ones_as_published() -> None:
    # Two neighbors are 0.1 and 1.9 away from the first image (mean 1, of squares 1.81), and 1.05 twice from
    # the fifth (mean 1.05, of squares 1.1025).
    line = np.array([[0], [-0.1], [1.9], [98.95], [100], [101.05]], dtype=np.float32)
    assert most_typical(line, 1, 2).tolist() == most_typical(line, 1, 2, TypiClust().distance).tolist() == [4]
    assert most_typical(line, 1, 2, "euclidean").tolist() == [0]


def test_typiclust_takes_from_every_cluster_whatever_the_order_of_rows() -> None:
    vectors = mixture(300, 16, 5, spread=0.1)
    # A cluster of three, which is too small.
    vectors[:3] = -vectors.mean(axis=0) / np.linalg.norm(vectors.mean(axis=0))
    names = pd.Series([f"{number:03}" for number in range(300)])
    strategy = TypiClust(max_clusters=6)
    first = strategy.select(seen(40, features=Features(names, vectors.astype(np.float16))))
    assert len(first) == 40
    assert not set(first["id"]) & {"000", "001", "002"}
    assert first.groupby("cluster")["rank"].apply(list).map(lambda ranks: ranks == sorted(ranks)).all()
    assert first["cluster"].value_counts().between(8, 8).all()
    order = np.random.default_rng(1).permutation(300)
    shuffled = Features(names[order].reset_index(drop=True), vectors[order].astype(np.float16))
    assert set(strategy.select(seen(40, features=shuffled))["id"]) == set(first["id"])


def test_typiclust_says_where_all_clusters_are_too_small() -> None:
    vectors = mixture(60, 20, 6, seed=0)
    context = seen(29, features=Features(pd.Series([f"{number:03}" for number in range(60)]), vectors))
    with pytest.raises(PreselError, match=r"of 29 clusters of 60 .* strategy\.max_clusters=1 "):
        TypiClust(min_cluster_size=20).select(context)
    TypiClust(max_clusters=1, min_cluster_size=20).select(context)


@pytest.mark.parametrize(
    ("strategy", "requested"), [("typiclust", 12), ("el2n", 60), ("perplexity", 60), ("ifd", 60)]
)
def test_the_ledger_tells_what_a_strategy_takes(
    strategy: str, requested: int, in_process: Program, pool_folder: Path
) -> None:
    in_process.succeeds(
        "run", *on_folder(pool_folder), f"strategy={strategy}", "until=instructions", "budget=0.2"
    )
    ledgers = [pd.read_parquet(file) for file in stage_files(pool_folder, "instructions", LEDGER)]
    assert pd.concat(ledgers)["id"].nunique() == requested
    (chosen,) = stage_files(pool_folder, "selection", "selection.parquet")
    assert 1 <= pd.read_parquet(chosen)["selected"].sum() <= 12
