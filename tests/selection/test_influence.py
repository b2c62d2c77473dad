"""Influence by gradients, and what ICONS and TIVE make of it, against brute force."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.selection import influence as module
from presel.selection.arrays import FloatMatrix
from presel.selection.influence import (
    draw,
    influence,
    mean_direction,
    target_influence,
    unit_gradients,
    votes,
)


def gradients(n: int, seed: int, dimension: int = 7) -> FloatMatrix:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, dimension)) * generator.uniform(0.01, 100, (n, 1))


def cosine(one: FloatMatrix, other: FloatMatrix) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_influence_on_a_task_is_the_mean_cosine_to_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 20)
    pool, validation = gradients(11, 0), gradients(9, 1)
    tasks = list("bacabcbab")
    found = target_influence(pool, validation, tasks)
    for row, one in enumerate(pool):
        for column, task in enumerate("abc"):
            own = [other for other, name in zip(validation, tasks, strict=True) if name == task]
            assert found[row, column] == pytest.approx(
                np.mean([cosine(one, other) for other in own]), abs=1e-6
            )


def test_a_gradient_of_zero_has_no_influence_and_receives_none() -> None:
    pool = np.array([[0, 0], [3, 4]], dtype=np.float32)
    rows, norms = unit_gradients(pool)
    assert norms.tolist() == [0, 5]
    assert influence(rows, np.array([[1.0, 0]])).tolist() == [[0], [pytest.approx(0.6)]]
    assert mean_direction(rows) == pytest.approx([0.3, 0.4])


@given(st.integers(2, 40), st.integers(0, 1000))
def test_neither_norms_nor_the_order_of_rows_decide_influence(n: int, seed: int) -> None:
    pool, validation = gradients(n, seed), gradients(5, seed + 1)
    found = target_influence(pool, validation, list("aabba"))
    generator = np.random.default_rng(seed)
    order = generator.permutation(n)
    scaled = pool[order] * generator.uniform(0.5, 2, (n, 1))
    np.testing.assert_allclose(target_influence(scaled, validation, list("aabba")), found[order], atol=1e-6)


def test_votes_by_hand() -> None:
    influences = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.0, 0.8], [-0.5, -0.5]])
    # The thresholds of a share of 0.4 lie between the third and the second value, at 0.6 of the way.
    assert votes(influences, 0.4).tolist() == [1, 1, 1, 1, 0]
    assert votes(influences, 0.25).tolist() == [1, 1, 1, 1, 0]
    assert votes(influences, 0.2).tolist() == [1, 0, 1, 0, 0]
    assert votes(influences, 1).tolist() == [2] * 5
    # Equal samples vote together.
    assert votes(np.zeros((4, 3)), 0.25).tolist() == [3] * 4


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=30, unique=True), st.floats(0.01, 1))
def test_a_task_votes_for_its_share_of_the_pool(values: list[int], share: float) -> None:
    found = votes(np.array(values, dtype=np.float64)[:, None], share)
    reached = sum(found)
    # Of n samples that all differ, those whose rank from 0 is at least (1 - share) · (n - 1).
    least = (1 - share) * (len(values) - 1)
    assert reached in {
        sum(rank >= least + noise for rank in range(len(values))) for noise in (-1e-9, 0, 1e-9)
    }
    assert min(v for v, vote in zip(values, found, strict=True) if vote) >= sorted(values)[-reached]


def test_draws_follow_the_softmax_of_the_samples_that_are_left() -> None:
    scores, scale = np.array([0.0, 1.0, -0.5]), 1.3
    weights = np.exp(scale * scores)
    generator = np.random.default_rng(0)
    draws = 20_000
    seen = Counter(tuple(draw(scores, 2, scale, generator).tolist()) for _ in range(draws))
    for first, second in permutations(range(3), 2):
        left = weights.sum() - weights[first]
        expected = weights[first] / weights.sum() * weights[second] / left
        assert seen[first, second] / draws == pytest.approx(expected, abs=0.01)


def test_a_draw_of_all_is_an_order_of_them() -> None:
    assert sorted(draw(np.arange(9.0), 9, 1e6, np.random.default_rng(1)).tolist()) == list(range(9))
    # At a large scale the highest scores come first, without an overflow.
    assert draw(np.arange(9.0), 3, 1e6, np.random.default_rng(1)).tolist() == [8, 7, 6]
