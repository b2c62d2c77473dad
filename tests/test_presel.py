"""PreSel's own choices, and the ablations of its parts."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from presel.strategies.base import SelectionContext
from presel.strategies.presel import PreSel

# 200, 100 and 60 images; ten of each make up the reference set.
TASKS = ["count"] * 200 + ["read"] * 100 + ["caption"] * 60
IDS = [f"{number:03}" for number in range(360)]
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
    }
    return SelectionContext(pool=pool, budget=budget, rng=np.random.default_rng(seed), results=results)


def bought(strategy: PreSel, seed: int = 0) -> dict[str, int]:
    """Images chosen beside the reference set, by task."""
    table = strategy.select(context(seed))
    chosen = table[table["selected"] & (table["why"] != "reference")]
    assert table["selected"].sum() == 90
    return {str(task): int(count) for task, count in chosen["task"].value_counts().items()}


@pytest.mark.parametrize("pick", ["centrality", "random"])
def test_task_budgets_of_the_ablations(pick: Any) -> None:
    assert bought(PreSel(weighting="uniform", pick=pick)) == {"count": 20, "read": 20, "caption": 20}
    assert bought(PreSel(weighting="size", pick=pick)) == {"count": 33, "read": 17, "caption": 10}
    # exp(-s / tau) with tau = 1/sqrt(3) is 0.707, 0.421, 0.177 for s of 0.2, 0.5, 1: shares 32.5, 19.3, 8.1.
    assert bought(PreSel(pick=pick)) == {"count": 33, "read": 19, "caption": 8}


@settings(max_examples=25, deadline=None)
@drawn(
    st.integers(0, 5),
    st.tuples(st.integers(30, 360), st.integers(30, 360)).map(sorted),
    st.sampled_from(["relevance", "size", "uniform"]),
    st.sampled_from(["centrality", "random"]),
    st.none() | st.floats(0.01, 10),
)
def test_a_larger_budget_contains_the_selection_of_a_smaller_one(
    seed: int, budgets: list[int], weighting: Any, pick: Any, tau: float | None
) -> None:
    strategy = PreSel(weighting=weighting, pick=pick, tau=tau)
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
