"""Draws by uncertainty and distance: their frequencies, and what holds for each."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.selection.uncertainty import uncertain_and_diverse
from tests.selection.mixtures import mixture

# On a line: squared distances from the first are 1, 4, 9.
LINE = np.array([[1.0], [2.0], [3.0], [4.0]], dtype=np.float32)
DOUBT = np.array([0.5, 2.0, 1.0, 0.5])
ALL = np.ones(4, dtype=bool)
NONE = np.zeros(4, dtype=bool)


def frequencies(place: int, **changes: Any) -> list[float]:
    """How often each image is drawn in this place of a thousand draws."""
    counts = np.zeros(4)
    for seed in range(1000):
        arguments = {"available": ALL, "bought": NONE, "budget": place + 1} | changes
        drawn = uncertain_and_diverse(LINE, DOUBT, rng=np.random.default_rng(seed), **arguments)
        counts[drawn[place]] += 1
    return list(counts / 1000)


def test_chances_are_uncertainty_times_squared_distance() -> None:
    # The standard error of a frequency is at most 0.016.
    near = {"abs": 0.05}
    assert frequencies(0) == pytest.approx([1 / 8, 4 / 8, 2 / 8, 1 / 8], **near)
    assert frequencies(0, beta=0) == pytest.approx([1 / 4] * 4, **near)
    assert frequencies(0, beta=2) == pytest.approx([0.25 / 5.5, 4 / 5.5, 1 / 5.5, 0.25 / 5.5], **near)
    first = np.array([True, False, False, False])
    # 2 · 1, 1 · 4 and 0.5 · 9.
    expected = [0, 2 / 10.5, 4 / 10.5, 4.5 / 10.5]
    assert frequencies(0, available=~first, bought=first) == pytest.approx(expected, **near)
    # The last is bought too: 2 · 1 and 1 · 1.
    both = np.array([True, False, False, True])
    assert frequencies(0, available=~both, bought=both) == pytest.approx([0, 2 / 3, 1 / 3, 0], **near)
    # Of the middle two, the one that was drawn first leaves the other.
    middle = np.array([False, True, True, False])
    assert frequencies(1, available=middle) == pytest.approx([0, 1 / 3, 2 / 3, 0], **near)


@given(st.integers(0, 1000), st.integers(0, 40), st.floats(0, 3))
def test_each_image_once_and_copies_last(seed: int, budget: int, beta: float) -> None:
    generator = np.random.default_rng(seed)
    vectors = mixture(40, 8, 4, seed=seed)
    # Copies of bought images.
    vectors[30:] = vectors[:10]
    bought = np.arange(40) < 10
    available = ~bought & (np.arange(40) != 20)
    doubt = np.where(available, generator.random(40) + 0.1, np.nan)
    drawn = uncertain_and_diverse(vectors, doubt, available, bought, budget, generator, beta)
    assert len(set(drawn.tolist())) == len(drawn) == min(budget, 29)
    assert available[drawn].all()
    assert (drawn[:19] < 30).all()


def test_without_any_uncertainty_draws_are_uniform() -> None:
    counts = np.zeros(4)
    for seed in range(500):
        rng = np.random.default_rng(seed)
        counts[uncertain_and_diverse(LINE, np.zeros(4), ALL, NONE, 2, rng)] += 1
    assert counts / 1000 == pytest.approx([0.25] * 4, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uncertainty": [1, -1, 1, 1]}, r"uncertainty\[1\] is -1.0"),
        ({"uncertainty": [1, np.nan, 1, 1]}, r"uncertainty\[1\] is nan"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"budget": 1.5}, "the budget is 1.5"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    arguments = {"uncertainty": DOUBT, "available": ALL, "bought": NONE, "budget": 2} | changes
    with pytest.raises(ValueError, match=message):
        uncertain_and_diverse(LINE, rng=np.random.default_rng(0), **arguments)
