"""Drawing from clusters: as many images as there are, with the probabilities that the docstring says."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.selection.drawing import draw_from_clusters

SHARES = st.floats(0, 1)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log weights, labels and availability of a few images."""
    weights = draw(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6))
    labels = draw(st.lists(st.integers(0, len(weights) - 1), max_size=40))
    available = draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    return np.array(weights), np.array(labels, dtype=int), np.array(available, dtype=bool)


@given(clusters(), st.integers(0, 50), SHARES, st.integers(0, 9))
def test_as_many_different_available_images_as_there_are(
    images: tuple[np.ndarray, np.ndarray, np.ndarray], count: int, share: float, seed: int
) -> None:
    weights, labels, available = images
    drawn = draw_from_clusters(weights, labels, available, count, share, np.random.default_rng(seed))
    assert len(drawn) == min(count, available.sum())
    assert (np.diff(drawn) > 0).all()
    assert available[drawn].all()
    again = draw_from_clusters(weights, labels, available, count, share, np.random.default_rng(seed))
    assert drawn.tolist() == again.tolist()


@given(clusters(), st.integers(0, 40))
def test_a_far_larger_weight_is_exhausted_first(
    images: tuple[np.ndarray, np.ndarray, np.ndarray], count: int
) -> None:
    weights, labels, available = images
    weights = 1e3 * np.arange(len(weights))
    drawn = draw_from_clusters(weights, labels, available, count, 0, np.random.default_rng(0))
    assert sorted(labels[drawn])[::-1] == sorted(labels[available])[::-1][:count]


def quotas_by_hand(weights: list[float], sizes: list[int], count: int) -> dict[tuple[int, ...], float]:
    """Probability of each possible number of draws from the clusters, one draw after the other."""
    found = {(0,) * len(sizes): 1.0}
    for _ in range(count):
        after: dict[tuple[int, ...], float] = {}
        for (taken, chance), cluster in product(found.items(), range(len(sizes))):
            room = [weight * (size > had) for weight, size, had in zip(weights, sizes, taken, strict=True)]
            if room[cluster]:
                now = (*taken[:cluster], taken[cluster] + 1, *taken[cluster + 1 :])
                after[now] = after.get(now, 0) + chance * room[cluster] / sum(room)
        found = after
    return found


def test_clusters_are_drawn_in_proportion_to_their_weights_and_images_uniformly() -> None:
    weights, sizes, count, times = [4.0, 2.0, 1.0], [2, 1, 4], 4, 6000
    labels = np.repeat([0, 1, 2], sizes)
    generator = np.random.default_rng(0)
    drawn = [
        draw_from_clusters(np.log(weights), labels, np.ones(7, dtype=bool), count, 0, generator)
        for _ in range(times)
    ]
    seen: dict[tuple[int, ...], int] = {}
    for rows in drawn:
        quotas = tuple(np.bincount(labels[rows], minlength=3).tolist())
        seen[quotas] = seen.get(quotas, 0) + 1
    for quotas, chance in quotas_by_hand(weights, sizes, count).items():
        assert seen[quotas] / times == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / times))
    last = np.bincount(np.concatenate(drawn), minlength=7)[3:]
    assert last / last.sum() == pytest.approx(np.full(4, 0.25), abs=0.02)


def test_a_random_share_ignores_the_weights() -> None:
    labels = np.repeat([0, 1], 100)
    weights = np.array([0.0, 1e6])
    generator = np.random.default_rng(0)
    every = np.ones(200, dtype=bool)
    taken = [
        (labels[draw_from_clusters(weights, labels, every, 40, share, generator)] == 0).sum()
        for share in (0.0, 0.5, 1.0)
        for _ in range(200)
    ]
    assert np.reshape(taken, (3, 200)).mean(axis=1) == pytest.approx([0, 10, 20], abs=1)


@pytest.mark.parametrize(
    ("weights", "count", "share", "message"),
    [
        ([0.0, np.nan], 1, 0.0, r"log_weights\[1\] is nan; must be finite"),
        ([0.0, 0.0], -1, 0.0, "count is -1"),
        ([0.0, 0.0], 1, 1.5, "random_share is 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(weights: list[float], count: int, share: float, message: str) -> None:
    labels, available = np.array([0, 1]), np.ones(2, dtype=bool)
    with pytest.raises(ValueError, match=message):
        draw_from_clusters(np.array(weights), labels, available, count, share, np.random.default_rng(0))
