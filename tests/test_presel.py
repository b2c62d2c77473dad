"""PreSel's own choices, and the ablations of its parts."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from presel.importance import RelevanceScore
from presel.selection.distinct import distinct_ranks
from presel.selection.feature_rows import Features
from presel.strategies.base import SelectionContext
from presel.strategies.presel import PreSel
from tests.helpers import Program, last_run, on_folder
from tests.selection.mixtures import mixture

# 200, 100 and 60 images; ten of each make up the reference set.
TASKS = ["count"] * 200 + ["read"] * 100 + ["caption"] * 60
IDS = [f"{number:03}" for number in range(360)]
VECTORS = mixture(360, 8, 40, spread=0.2).astype(np.float16)
REFERENCE = [name for task in (0, 200, 300) for name in IDS[task : task + 10]]


def context(seed: int = 0, budget: int = 90) -> SelectionContext:
    pool = pd.DataFrame({"id": IDS, "task": TASKS})
    relevance = pd.DataFrame(
        {
            "id": REFERENCE,
            "loss_with_question": [0.2] * 10 + [0.5] * 10 + [1.0] * 10,
            "loss_without_question": 1.0,
        }
    )
    results: dict[str, Any] = {
        "reference": pd.DataFrame({"id": REFERENCE}),
        "relevance": relevance,
        "centrality": pool.assign(
            cluster=np.arange(360) % 2,
            centrality=np.where(np.isin(IDS, REFERENCE), np.nan, np.random.default_rng(5).random(360)),
        ),
        "features": Features(pd.Series(IDS)[::-1], VECTORS[::-1]),
    }
    return SelectionContext(pool=pool, budget=budget, rng=np.random.default_rng(seed), results=results)


def bought(strategy: PreSel, seed: int = 0) -> dict[str, int]:
    """Images chosen beside the reference set, by task."""
    table = strategy.select(context(seed))
    chosen = table[table["selected"] & (table["why"] != "reference")]
    assert table["selected"].sum() == 90
    return {str(task): int(count) for task, count in chosen["task"].value_counts().items()}


@pytest.mark.parametrize("pick", ["centrality", "distinct", "random"])
def test_task_budgets_of_the_ablations(pick: Any) -> None:
    assert bought(PreSel(weighting="uniform", pick=pick)) == {"count": 20, "read": 20, "caption": 20}
    assert bought(PreSel(weighting="size", pick=pick)) == {"count": 33, "read": 17, "caption": 10}
    # exp(-s / tau) with tau = 1/sqrt(3) is 0.707, 0.421, 0.177 for s of 0.2, 0.5, 1: shares 32.5, 19.3, 8.1.
    assert bought(PreSel(pick=pick)) == {"count": 33, "read": 19, "caption": 8}


def test_a_task_whose_reference_samples_all_lack_an_instruction_is_selected_from() -> None:
    known = context()
    answered = known.relevance[:20]
    seen = replace(known, results=known.results | {"relevance": answered})
    assert sum(PreSel().weights(seen).values()) == pytest.approx(1)
    # As if the score of `caption` were 1, as it is in `known`.
    pd.testing.assert_frame_equal(PreSel().select(seen), PreSel().select(known))


def test_a_task_without_answers_scores_as_one_whose_questions_do_nothing() -> None:
    known = context()
    answered = known.relevance[:20].assign(
        loss_with_question=[0.7] * 10 + [0.9] * 10, loss_without_question=0.9
    )
    seen = replace(known, results=known.results | {"relevance": answered})
    for score in get_args(RelevanceScore):
        weights = PreSel(score=score).weights(seen)
        # The mean of two scores has the geometric mean of their weights.
        by_mean = (weights["count"] * weights["read"]) ** 0.5
        expected = by_mean if score == "response_loss" else weights["read"]
        assert weights["caption"] == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@drawn(
    st.integers(0, 5),
    st.tuples(st.integers(30, 360), st.integers(30, 360)).map(sorted),
    st.sampled_from(["relevance", "size", "uniform"]),
    st.sampled_from(["centrality", "distinct", "random"]),
    st.none() | st.floats(0.01, 10),
    st.sampled_from([0.5, 1]),
)
def test_a_larger_budget_contains_the_selection_of_a_smaller_one(
    seed: int, budgets: list[int], weighting: Any, pick: Any, tau: float | None, exponent: float
) -> None:
    strategy = PreSel(weighting=weighting, pick=pick, tau=tau, size_exponent=exponent)
    tables = [strategy.select(context(seed, budget)) for budget in budgets]
    small, large = (set(table["id"][table["selected"]]) for table in tables)
    assert [len(small), len(large)] == budgets
    assert small <= large


def test_samples_of_undefined_relevance_do_not_count() -> None:
    some = context()
    # One of the first task's samples, and all of the last task's, whose score of 1 is the one by definition.
    some.relevance.loc[[0, *range(20, 30)], "loss_without_question"] = 0.0
    assert PreSel().weights(some) == pytest.approx(PreSel().weights(context()))
    some.relevance["loss_without_question"] = 0.0
    assert PreSel().weights(some) == pytest.approx(dict.fromkeys(["caption", "count", "read"], 1 / 3))


def test_random_picks_keep_the_budgets_and_change_the_images() -> None:
    central, drawn = PreSel().select(context()), PreSel(pick="random").select(context())
    assert set(drawn["why"].dropna()) == {"reference", "random"}
    assert set(central["why"].dropna()) == {"reference", "central"}
    for column in ("task_budget", "centrality", "rank"):
        pd.testing.assert_series_equal(
            central.set_index("id")[column].sort_index(), drawn.set_index("id")[column].sort_index()
        )
    quotas = [table[table["selected"]].groupby(["task", "cluster"]).size() for table in (central, drawn)]
    pd.testing.assert_series_equal(*quotas)
    assert set(central["id"][central["selected"]]) != set(drawn["id"][drawn["selected"]])


def test_shrinking_moves_weights_toward_equal_ones() -> None:
    full, equal = (PreSel(weighting=weighting).weights(context()) for weighting in ("relevance", "uniform"))
    assert PreSel(shrink=0).weights(context()) == full
    assert PreSel(shrink=1).weights(context()) == equal
    half = {task: (full[task] + equal[task]) / 2 for task in full}
    assert PreSel(shrink=0.5).weights(context()) == pytest.approx(half)


def test_distinct_picks_are_the_first_of_their_cluster_by_distinct_ranks() -> None:
    strategy = PreSel(pick="distinct", redundancy_penalty=0.5, redundancy_power=4)
    assert "features" in strategy.needs and "features" not in PreSel().needs
    some = context()
    table = strategy.select(some).sort_values("id")
    taken = (table["why"] == "distinct").to_numpy()
    for task in set(TASKS):
        inside = np.array(TASKS) == task
        given = some.centrality[inside]
        ranks = distinct_ranks(
            VECTORS[inside].astype(np.float32),
            given["centrality"].to_numpy(),
            given["cluster"].to_numpy(),
            given["centrality"].notna().to_numpy(),
            penalty=0.5,
            power=4,
        )
        for cluster in (0, 1):
            chosen = ranks[taken[inside] & (given["cluster"] == cluster).to_numpy()]
            assert sorted(chosen) == list(range(1, len(chosen) + 1))
    assert set(table["id"][taken]) != set(
        table["id"][PreSel().select(some).sort_values("id")["why"] == "central"]
    )


def test_small_clusters_get_more_where_sizes_count_by_their_roots() -> None:
    some = context()
    some.centrality["cluster"] = (np.arange(360) % 10 > 0).astype(int)  # a tenth of the images in cluster 0
    for exponent, expected in ((1.0, 2), (0.5, 5), (0.0, 10)):
        table = PreSel(weighting="uniform", pick="random", size_exponent=exponent).select(some)
        counts = table[table["why"] == "random"].groupby(["task", "cluster"]).size()
        assert counts["count"].sum() == 20 and counts["count", 0] == expected
    with pytest.raises(ValueError, match=r"size_exponent=0\.5 needs allocation\.clusters=exact, not paper"):
        PreSel(size_exponent=0.5, cluster_allocation="paper")


def test_distinct_images_are_chosen_on_a_real_pool(in_process: Program, pool_folder: Path) -> None:
    run = ("run", *on_folder(pool_folder), "budget=12", "until=selection")
    in_process.succeeds(*run, "strategy.pick=distinct", "strategy.shrink=0.5", "strategy.size_exponent=0.5")
    chosen = last_run(pool_folder).selection
    assert chosen["selected"].sum() == 12
    assert chosen["why"].value_counts().to_dict() == {"distinct": 9, "reference": 3}
    error = in_process.refuses(*run, "strategy.size_exponent=0.5", "allocation=paper")
    assert "size_exponent=0.5 needs allocation.clusters=exact, not paper" in error
