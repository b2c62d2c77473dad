"""PreCover: its task budgets, its picks, and what it reads before it chooses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from presel.instructions.ledger import LEDGER
from presel.selection.coverage import facility_location, nearest_to_centers
from presel.selection.feature_rows import Features
from presel.selection.uncertainty import uncertain_and_diverse
from presel.strategies.base import SelectionContext
from presel.strategies.precover import PreCover
from presel.strategies.presel import PreSel
from tests.helpers import Program, last_run, on_folder, stage_files
from tests.pictures import picture
from tests.selection.mixtures import mixture

# 60, 40 and 20 images; the last are too few for a third of a budget of 90.
TASKS = ["count"] * 60 + ["read"] * 40 + ["caption"] * 20
IDS = np.array([f"{number:03}" for number in range(120)])
REFERENCE = [str(name) for start in (0, 60, 100) for name in IDS[start : start + 5]]
# Features are far from centered.
VECTORS = (mixture(120, 8, 6) + 2).astype(np.float16)


def context(
    strategy: PreCover, budget: int = 90, seed: int = 0, order: Any = slice(None)
) -> SelectionContext:
    results: dict[str, Any] = {
        "features": Features(pd.Series(IDS[order]), VECTORS[order]),
        "reference": pd.DataFrame({"id": REFERENCE}),
        "relevance": pd.DataFrame(
            {
                "id": REFERENCE,
                "loss_with_question": np.repeat([0.2, 0.5, 1.0], 5),
                "loss_without_question": 1.0,
            }
        ),
        # The image helps as much as the question does in `relevance`.
        "swapped_relevance": pd.DataFrame({"id": REFERENCE, "loss_with_question": 1.0}),
        # Gains of 9, 1 and -1 nats a response.
        "learning_gain": pd.DataFrame(
            {
                "id": REFERENCE,
                "task": np.repeat(["count", "read", "caption"], 5),
                "loss_base": np.repeat([4.0, 2.0, 1.0], 5),
                "loss_tuned": np.repeat([1.0, 1.5, 1.5], 5),
                "n_tokens": np.repeat([3, 2, 2], 5),
            }
        ),
        "uncertainty": pd.DataFrame({"id": IDS, "uncertainty": np.linspace(0.5, 2, 120)})[
            ~np.isin(IDS, REFERENCE)
        ],
    }
    needed = (*strategy.needs, *(["uncertainty"] if strategy.picks == "uncertainty" else []))
    return SelectionContext(
        pool=pd.DataFrame({"id": IDS, "task": TASKS}).iloc[order],
        budget=budget,
        rng=np.random.default_rng(seed),
        results={name: results[name] for name in needed},
    )


PICKS = ("random", "kmeans", "facility_location", "uncertainty")
BUDGETS = ("uniform", "size", "relevance", "image_relevance", "gain")


@pytest.mark.parametrize("picks", PICKS)
@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ("uniform", {"caption": 20, "count": 35, "read": 35}),
        ("size", {"caption": 15, "count": 45, "read": 30}),
        # Beside 15 reference images; shares of the other 75 as in `tests/test_presel.py`: 40.6, 24.2, 10.2.
        ("relevance", {"caption": 10, "count": 41, "read": 24}),
        ("image_relevance", {"caption": 10, "count": 41, "read": 24}),
        # Roots are 3 : 1 : 0; `count` has but 60 images, and `caption` keeps its 5 reference images.
        ("gain", {"caption": 0, "count": 55, "read": 20}),
    ],
)
def test_task_budgets_are_spent_exactly(budgets: Any, picks: Any, expected: dict[str, int]) -> None:
    strategy = PreCover(budgets=budgets, picks=picks)
    table = strategy.select(context(strategy))
    assert len(table) == 120 and table["selected"].sum() == 90
    chosen = table[table["why"] == picks]
    bought = set(REFERENCE) if picks == "uncertainty" or budgets not in ("uniform", "size") else set()
    if bought and budgets in ("uniform", "size"):
        # Five of each task are among its images.
        expected = {task: count - 5 for task, count in expected.items()}
    expected = {task: count for task, count in expected.items() if count}
    assert chosen["task"].value_counts().to_dict() == expected
    for task, budget in table.groupby("task")["task_budget"]:
        assert set(budget) == {expected.get(str(task), 0)}
    assert set(table["id"][table["why"] == "reference"]) == bought
    for _, ranks in chosen.groupby("task")["rank"]:
        assert sorted(ranks) == list(range(1, len(ranks) + 1))
    assert (table["rank"].notna() == (table["why"] == picks)).all()


def test_images_of_unknown_uncertainty_are_drawn_last() -> None:
    strategy = PreCover(picks="uncertainty")
    given = context(strategy, budget=100)
    unknown = IDS[::2]
    known = given["uncertainty"][~given["uncertainty"]["id"].isin(unknown)]
    table = strategy.select(replace(given, results={**given.results, "uncertainty": known}))
    assert table["selected"].sum() == 100
    for _, images in table[table["why"] != "reference"].groupby("task"):
        ranks = images.set_index("id")["rank"].fillna(np.inf)
        assert ranks[~ranks.index.isin(unknown)].max() <= ranks[ranks.index.isin(unknown)].min()


def test_relevance_weighs_tasks_as_in_presel() -> None:
    strategy = PreCover(budgets="relevance", tau=0.3, score="difference")
    given = context(strategy)
    weights = strategy.select(given).groupby("task")["task_weight"].first()
    assert weights.to_dict() == PreSel(tau=0.3, score="difference").weights(given)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("budgets", ["uniform", "relevance"])
def test_picks_are_those_of_the_functions_on_the_tasks_features(budgets: Any, center: bool) -> None:
    # In float32, since k-means may depend on the last bit.
    vectors = VECTORS.astype(np.float32)
    if center:
        vectors -= VECTORS.astype(np.float64).mean(axis=0).astype(np.float32)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = (vectors * (1 / norms).astype(np.float32))[60:100]
    reference, doubt = np.isin(IDS[60:100], REFERENCE), np.linspace(0.5, 2, 120)[60:100]
    for picks in ("facility_location", "kmeans", "uncertainty"):
        bought = reference & (budgets == "relevance" or picks == "uncertainty")
        strategy = PreCover(budgets=budgets, picks=picks, center=center)
        table = strategy.select(context(strategy, budget=60))
        chosen = table[(table["task"] == "read") & (table["why"] == picks)].sort_values("rank")
        rng = np.random.default_rng(0)
        seed = [int(rng.integers(2**31)) for _ in range(3)][2]
        if picks == "facility_location":
            expected = facility_location(unit, ~bought, bought, len(chosen))
        elif picks == "kmeans":
            expected = nearest_to_centers(unit, ~bought, len(chosen), seed)
        else:
            expected = uncertain_and_diverse(
                unit, doubt, ~bought, bought, len(chosen), np.random.default_rng(seed)
            )
        assert chosen["id"].tolist() == IDS[60:100][expected].tolist()


@drawn(
    st.sampled_from(BUDGETS),
    st.sampled_from(PICKS),
    st.integers(15, 120),
    st.integers(0, 2**31),
)
def test_any_order_of_rows_gives_the_same_selection(budgets: Any, picks: Any, budget: int, seed: int) -> None:
    strategy = PreCover(budgets=budgets, picks=picks)
    order = np.random.default_rng(seed).permutation(120)
    tables = [strategy.select(context(strategy, budget, order=rows)) for rows in (slice(None), order)]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["selected"].sum() == budget


@drawn(
    st.sampled_from(["uniform", "size"]),
    st.sampled_from(["random", "facility_location"]),
    st.integers(1, 119),
)
def test_a_larger_budget_contains_the_selection_of_a_smaller_one(
    budgets: Any, picks: Any, budget: int
) -> None:
    strategy = PreCover(budgets=budgets, picks=picks)
    small, large = (strategy.select(context(strategy, budget + more)) for more in (0, 1))
    assert set(small["id"][small["selected"]]) < set(large["id"][large["selected"]])


@pytest.mark.parametrize(
    ("budgets", "picks", "used", "before"),
    [
        ("uniform", "facility_location", {"features"}, 0),
        ("relevance", "random", {"relevance"}, 3),
        ("image_relevance", "random", {"relevance", "swapped_relevance"}, 3),
        ("gain", "random", {"learning_gain"}, 3),
        ("uniform", "uncertainty", {"features", "uncertainty"}, 3),
    ],
)
def test_only_what_rests_on_the_reference_set_buys_it_before_the_selection(
    budgets: str, picks: str, used: set[str], before: int, in_process: Program, pool_folder: Path
) -> None:
    run = ("run", *on_folder(pool_folder), "strategy=precover", "budget=12", "until=instructions")
    in_process.succeeds(*run, f"strategy.budgets={budgets}", f"strategy.picks={picks}")
    stages = last_run(pool_folder).stages
    measured = {"features", "relevance", "swapped_relevance", "learning_gain", "uncertainty"}
    assert measured & set(stages) == used
    assert ("reference_instructions" in stages) == (before > 0)
    ledgers = {
        stage.label: pd.read_parquet(stage.folder / LEDGER)
        for stage in stages.values()
        if stage.name == "instructions"
    }
    bought = pd.concat(ledgers.values())
    assert bought["id"].nunique() == 12
    # An image keeps the stage that requested it first.
    assert bought.loc[bought["stage"] == "reference", "id"].nunique() == before
    (file,) = stage_files(pool_folder, "selection", "selection.parquet")
    table = pd.read_parquet(file)
    assert set(bought["id"]) == set(table["id"][table["selected"]])
    assert (table["why"] == "reference").sum() == before


def test_a_pool_of_copies_cannot_be_centered(in_process: Program, tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"cats/{number}.png")
    run = ("run", "pool=image_folder", "pool.images=.", "strategy=precover", "budget=2", "executor.workers=0")
    error = in_process.refuses(*run, "until=selection")
    assert (
        "row 'cats/0.png' equals the mean, which is subtracted (4 such rows in all); do not subtract it"
        in error
    )
    in_process.succeeds(*run, "until=selection", "strategy.center=false")
