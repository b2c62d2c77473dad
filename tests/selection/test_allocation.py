"""Properties of the allocations, and their refusals."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from presel.selection import allocate_clusters, allocate_tasks, fill_tasks

WEIGHT = st.one_of(st.just(0.0), st.integers(1, 5).map(float), st.floats(1e-6, 1e3))
TASKS = st.lists(st.tuples(WEIGHT, st.integers(0, 60)), min_size=1, max_size=8).filter(
    lambda tasks: any(weight > 0 for weight, _ in tasks)
)
CLUSTERS = st.lists(st.integers(0, 200), min_size=1, max_size=12)


def capped_shares(weights: list[float], caps: list[int], budget: int) -> list[Fraction]:
    """The ideal shares in exact arithmetic: proportional, capped, what is cut off shared again."""
    shares = [Fraction(0)] * len(caps)
    open_, left = [i for i, w in enumerate(weights) if w > 0], Fraction(budget)
    while open_:
        level = left / sum(Fraction(weights[i]) for i in open_)
        full = [i for i in open_ if level * Fraction(weights[i]) >= caps[i]]
        for i in full or open_:
            shares[i] = Fraction(caps[i]) if full else level * Fraction(weights[i])
            left -= shares[i]
        open_ = [i for i in open_ if i not in full] if full else []
    return shares


@given(TASKS, st.integers(0, 500))
def test_exact_meets_the_budget_and_the_caps_and_never_takes_back(
    tasks: list[tuple[float, int]], budget: int
) -> None:
    weights, sizes = zip(*tasks, strict=True)
    allocation = allocate_tasks(weights, sizes, budget)
    assert allocation.sum() == min(budget, sum(sizes))
    assert (allocation >= 0).all()
    assert (allocation <= sizes).all()
    assert (allocate_tasks(weights, sizes, budget + 1) >= allocation).all()


@given(TASKS, st.integers(0, 200))
def test_exact_stays_near_every_capped_share(tasks: list[tuple[float, int]], budget: int) -> None:
    weights, sizes = (list(column) for column in zip(*tasks, strict=True))
    budget = min(budget, sum(size for weight, size in tasks if weight > 0))
    ideal = capped_shares(weights, sizes, budget)
    allocation = allocate_tasks(weights, sizes, budget)
    for given_, share in zip(allocation.tolist(), ideal, strict=True):
        # Up to the share rounded up; below it rounded down only in rare cases, and by one.
        assert share - 2 < given_ < share + 1 + Fraction(1, 10**6)


def test_exact_is_largest_remainder_where_that_is_monotone() -> None:
    assert allocate_clusters([55, 9, 9, 9, 9, 9], 10).tolist() == [5, 1, 1, 1, 1, 1]
    assert allocate_tasks([0.5, 0.25, 0.25], [9, 9, 9], 5).tolist() == [3, 1, 1]
    # Equal urgency, although the quotients of the scaled weights would differ in the last bit.
    assert allocate_clusters([3, 18, 35], 35).tolist() == [2, 11, 22]
    assert allocate_tasks([0.7, 0.1], [1948, 1494], 1143).tolist() == [1000, 143]
    assert allocate_tasks([7, 1], [1948, 1494], 1143).tolist() == [1000, 143]


@given(TASKS, st.integers(0, 500), st.randoms(use_true_random=False))
def test_exact_does_not_depend_on_the_order(
    tasks: list[tuple[float, int]], budget: int, random: "np.random.Generator"
) -> None:
    shuffled = list(tasks)
    random.shuffle(shuffled)  # type: ignore[arg-type]

    def outcome(rows: list[tuple[float, int]]) -> list[tuple[float, int, int]]:
        given_ = allocate_tasks(*zip(*rows, strict=True), budget)
        return sorted((*row, count) for row, count in zip(rows, given_.tolist(), strict=True))

    # Rows equal in weight and size are interchangeable, so outcomes compare as multisets.
    assert outcome(tasks) == outcome(shuffled)


def test_exact_has_no_alabama_paradox() -> None:
    # Largest remainder gives the third 2 of 10 and 1 of 11.
    weights, sizes = [6, 6, 2], [100, 100, 100]
    assert allocate_tasks(weights, sizes, 11)[2] >= allocate_tasks(weights, sizes, 10)[2]


def test_exact_ties_go_to_weight_then_cap_then_position() -> None:
    assert allocate_tasks([1, 1], [5, 5], 1).tolist() == [1, 0]
    assert allocate_tasks([1, 1], [5, 6], 1).tolist() == [0, 1]


def test_exact_fills_tasks_of_weight_zero_last() -> None:
    assert allocate_tasks([0.5, 0, 0.5], [3, 10, 3], 6).tolist() == [3, 0, 3]
    assert allocate_tasks([0.5, 0, 0.5], [3, 10, 3], 8).tolist() == [3, 2, 3]


@given(CLUSTERS, st.integers(0, 3000))
def test_exact_clusters(available: list[int], budget: int) -> None:
    allocation = allocate_clusters(available, budget)
    assert allocation.sum() == min(budget, sum(available))
    assert (allocation <= available).all()
    assert (allocate_clusters(available, budget + 1) >= allocation).all()


@given(CLUSTERS, st.integers(0, 3000), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_sizes_to_a_power_weigh_clusters(available: list[int], budget: int, exponent: float) -> None:
    allocation = allocate_clusters(available, budget, size_exponent=exponent).tolist()
    if any(available):
        weights = [size**exponent if size else 0.0 for size in available]
        assert allocation == allocate_tasks(weights, available, budget).tolist()


@pytest.mark.parametrize(("exponent", "mode"), [(-1, "exact"), (math.nan, "exact"), (0.5, "paper")])
def test_an_exponent_is_for_the_exact_mode(exponent: float, mode: Any) -> None:
    with pytest.raises(ValueError, match=f"size_exponent is {exponent} in mode '{mode}'; it must be"):
        allocate_clusters([1, 2], 2, mode, size_exponent=exponent)


@given(CLUSTERS.filter(any), st.integers(0, 2000))
def test_paper_is_the_floor_of_equation_6(available: list[int], budget: int) -> None:
    expected = [size * budget // sum(available) for size in available]
    assert allocate_clusters(available, budget, mode="paper").tolist() == expected


@given(CLUSTERS.filter(any), st.floats(0.01, 1), st.integers(0, 2000))
def test_paper_floors_once_with_a_real_budget(sizes: list[int], weight: float, budget: int) -> None:
    for given_, size in zip(
        allocate_clusters(sizes, weight * budget, mode="paper").tolist(), sizes, strict=True
    ):
        ideal = Fraction(weight) * budget * size / sum(sizes)
        assert ideal - 1 - Fraction(1, 10**9) < given_ <= ideal + Fraction(1, 10**9)


def test_paper_counts_whole_clusters() -> None:
    assert allocate_clusters([10, 10], 10, mode="paper", totals=[30, 10]).tolist() == [7, 2]


@given(TASKS, st.integers(0, 500))
def test_paper_tasks(tasks: list[tuple[float, int]], budget: int) -> None:
    weights = np.array([weight for weight, _ in tasks])
    weights /= math.fsum(weights.tolist())
    allocation = allocate_tasks(weights, [size for _, size in tasks], budget, mode="paper")
    assert (allocation == np.floor(weights * budget)).all()


@settings(max_examples=50)
@given(CLUSTERS.filter(any), st.integers(0, 3000))
def test_released_clusters_round_and_correct_once(available: list[int], budget: int) -> None:
    allocation = allocate_clusters(available, budget, mode="released")
    rounded = [min(round(size / sum(available) * budget), size) for size in available]
    assert (np.abs(allocation - rounded) <= 1).all()
    assert (allocation <= available).all()
    assert (allocation >= 0).all()


@pytest.mark.parametrize(
    ("weights", "sizes", "budget", "mode", "message"),
    [
        ([1, -1], [5, 5], 2, "exact", r"weights\[1\] is -1.0"),
        ([1, math.nan], [5, 5], 2, "exact", r"weights\[1\] is nan"),
        ([0, 0], [5, 5], 2, "exact", "all weights are 0"),
        ([1], [5, 5], 2, "exact", "1 values and sizes 2"),
        ([], [], 2, "exact", "non-empty"),
        ([1], [-5], 2, "exact", r"sizes\[0\] is -5"),
        ([1], [2.5], 2, "exact", r"sizes\[0\] is 2.5"),
        ([1], [5], -2, "exact", "budget is -2"),
        ([1], [5], 2.5, "exact", "budget is 2.5"),
        ([1], [5], 2, "fair", "mode 'fair' is unknown"),
        ([1, 1], [5, 5], 2, "paper", "weights sum to 2"),
    ],
)
def test_tasks_refuse(
    weights: list[float], sizes: list[float], budget: float, mode: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        allocate_tasks(weights, sizes, budget, mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("available", "budget", "mode", "totals", "message"),
    [
        ([], 2, "exact", None, "non-empty"),
        ([5], 2, "exact", [5, 5], "1 values and totals 2"),
        ([5], 2, "exact", [4], "more than its total"),
        ([5], 2.5, "released", None, "budget is 2.5"),
        ([5], math.nan, "paper", None, "budget is nan"),
        ([5], 2, "fair", None, "mode 'fair' is unknown"),
    ],
)
def test_clusters_refuse(
    available: list[int], budget: float, mode: str, totals: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        allocate_clusters(available, budget, mode=mode, totals=totals)  # type: ignore[arg-type]


@given(
    st.lists(st.tuples(WEIGHT, st.integers(0, 30), st.integers(0, 60)), min_size=1, max_size=8).filter(
        lambda tasks: any(weight > 0 for weight, _, _ in tasks)
    ),
    st.integers(0, 400),
)
def test_filling_counts_what_is_bought(tasks: list[tuple[float, int, int]], more: int) -> None:
    weights, bought, free = (np.array(column) for column in zip(*tasks, strict=True))
    sizes, budget = bought + free, int(bought.sum()) + more
    added = fill_tasks(weights, bought, sizes, budget)
    assert added.sum() == min(more, free.sum())
    assert ((added >= 0) & (added <= free)).all()
    # The water level by bisection, with tasks of weight 0 at what they own.
    if more > free[weights > 0].sum():
        assert (added == free)[weights > 0].all()
        return
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        filled = np.clip(middle * weights, bought, sizes)
        low, high = (low, middle) if filled.sum() > budget else (middle, high)
    assert (np.abs(bought + added - np.clip(low * weights, bought, sizes)) < 2).all()


def test_filling_by_hand() -> None:
    # 30 images for weights 3 : 2 : 1 are 15, 10, 5; the last task owns 9, so that the others share 21.
    assert fill_tasks([3, 2, 1], [2, 2, 9], [40, 40, 40], 30).tolist() == [11, 6, 0]
    # The first holds 8 images, so that the second gets the rest.
    assert fill_tasks([3, 2, 1], [2, 2, 9], [8, 40, 40], 30).tolist() == [6, 11, 0]
    assert fill_tasks([1, 0], [1, 1], [5, 9], 10).tolist() == [4, 4]
    assert fill_tasks([1, 5e-324], [1, 1], [5, 9], 6).tolist() == [4, 0]


@pytest.mark.parametrize(
    ("bought", "sizes", "budget", "message"),
    [
        ([3, 1], [2, 2], 4, r"bought\[0\] is 3; no more images"),
        ([2, 2], [5, 5], 3, "the budget is 3, below the 4 images"),
        ([2], [5, 5], 3, "2 weights, 1 values of bought and 2 sizes"),
    ],
)
def test_filling_refuses(bought: list[int], sizes: list[int], budget: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill_tasks([1, 1], bought, sizes, budget)
