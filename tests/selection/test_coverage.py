"""Coverage of a task: facility location, and the images nearest to the centers of k-means."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.selection import cluster, coverage
from presel.selection.coverage import facility_location, nearest_to_centers
from tests.selection.mixtures import mixture


def value(vectors: np.ndarray, chosen: Any) -> float:
    """The facility location function, by its definition."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    if not len(chosen):
        return 0.0
    return float(np.maximum((unit @ unit[list(chosen)].T).max(axis=1), 0).mean())


def plain_greedy(vectors: np.ndarray, available: np.ndarray, bought: np.ndarray, budget: int) -> list[int]:
    chosen = np.flatnonzero(bought).tolist()
    start, left = len(chosen), np.flatnonzero(available).tolist()
    while left and len(chosen) - start < budget:
        values = [round(value(vectors, [*chosen, row]) - value(vectors, chosen), 9) for row in left]
        chosen.append(left.pop(int(np.argmax(values))))
    return chosen[start:]


def masks(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Most images available, some bought, some neither."""
    draw = np.random.default_rng(seed).random(n)
    return draw > 0.2, draw < 0.1


@given(st.integers(0, 2**31), st.integers(1, 25), st.integers(0, 30), st.integers(1, 4))
def test_lazy_greedy_is_plain_greedy(seed: int, n: int, budget: int, copies: int) -> None:
    # Repeated rows, so that gains tie.
    vectors = 2 * mixture(n, 6, 3, seed)[np.arange(n) // copies]
    available, bought = masks(n, seed)
    chosen = facility_location(vectors, available, bought, budget)
    assert chosen.tolist() == plain_greedy(vectors, available, bought, budget)


def test_neither_batches_nor_tiles_show(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, (available, bought) = mixture(90, 8, 4), masks(90, 1)
    expected = plain_greedy(vectors, available, bought, 40)
    assert facility_location(vectors, available, bought, 40).tolist() == expected
    for name, size in (("_TILE_ROWS", 7), ("_TILE_COLUMNS", 3), ("_FIRST_BATCH", 1)):
        monkeypatch.setattr(coverage, name, size)
    assert facility_location(vectors, available, bought, 40).tolist() == expected


def test_greedy_comes_as_near_to_the_best_choice_as_is_proved() -> None:
    vectors = mixture(12, 3, 12, seed=4)
    every, none = np.ones(12, dtype=np.bool_), np.zeros(12, dtype=np.bool_)
    best = max(value(vectors, rows) for rows in combinations(range(12), 4))
    assert value(vectors, facility_location(vectors, every, none, 4)) >= (1 - 1 / np.e) * best


def test_what_is_bought_is_not_covered_again() -> None:
    # Three groups of images; one of the first is bought.
    vectors = np.repeat(np.eye(3, dtype=np.float32), [5, 4, 3], axis=0)
    available = np.arange(12) > 0
    assert facility_location(vectors, available, ~available, 2).tolist() == [5, 9]
    none = np.zeros(12, dtype=np.bool_)
    assert facility_location(vectors, available, none, 3).tolist() == [1, 5, 9]


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(0, 50))
def test_one_distinct_image_nearest_to_each_center(seed: int, n: int, budget: int) -> None:
    vectors = mixture(n, 6, 5, seed % 7)
    vectors[n // 2 :] = vectors[: n - n // 2]  # equal images
    available, _ = masks(n, seed)
    chosen = nearest_to_centers(vectors, available, budget, seed)
    free = np.flatnonzero(available)
    assert len(set(chosen.tolist())) == len(chosen) == min(budget, len(free))
    if not len(chosen):
        return
    labels, centers = cluster(vectors[free], len(chosen), seed, canonical_order=True)
    expected = []
    for label in range(len(chosen)):
        members = free[labels == label]
        distances = np.round(np.square(vectors[members].astype(np.float64) - centers[label]).sum(axis=1), 6)
        expected.append((-len(members), int(members[distances.argmin()])))
    assert chosen.tolist() == [row for _, row in sorted(expected)]


@pytest.mark.parametrize(
    ("available", "bought", "budget", "told"),
    [
        ([True] * 3, [False] * 4, 1, r"available has shape \(3,\) and type bool; .* each of the 4 images"),
        ([True] * 4, [0] * 4, 1, r"bought has shape \(4,\) and type int64; it must be bool"),
        ([True] * 4, [False, False, True, False], 1, "row 2 is both available and bought"),
        ([True] * 4, [False] * 4, 1.5, r"the budget is 1\.5; it must be a whole number of at least 0"),
    ],
)
def test_mistakes_are_named(available: Any, bought: Any, budget: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        facility_location(np.eye(4, dtype=np.float32), np.array(available), np.array(bought), budget)
