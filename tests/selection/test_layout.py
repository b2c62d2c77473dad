"""The layout of a pool in the plane."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from presel.selection import layout as module
from presel.selection.layout import layout
from tests.selection.mixtures import mixture


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(one[:, None] - other[None], axis=2)


def two_groups(size: int) -> np.ndarray:
    """Vectors of two distant groups, one after the other."""
    vectors = np.random.default_rng(0).standard_normal((2 * size, 20))
    vectors[size:, 0] += 30
    return vectors.astype(np.float32)


@pytest.mark.parametrize("laid_out", [1000, 60])
def test_what_is_similar_lies_together(laid_out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAID_OUT", laid_out)
    places = layout(two_groups(50))
    within = max(distances(places[part], places[part]).max() for part in (slice(50), slice(50, None)))
    centers = places[:50].mean(axis=0), places[50:].mean(axis=0)
    assert np.linalg.norm(centers[0] - centers[1]) > within / 2
    nearest = distances(places, np.array(centers)).argmin(axis=1)
    assert nearest.tolist() == [0] * 50 + [1] * 50


def test_others_are_placed_among_their_nearest_of_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAID_OUT", 50)
    vectors = mixture(80, 12, 4)
    sample = np.sort(np.random.default_rng(0).choice(80, 50, replace=False))
    others = np.setdiff1d(np.arange(80), sample)
    # Copies of vectors of the sample come to lie on these, since distance 0 outweighs the other neighbors.
    vectors[others] = vectors[sample[: len(others)]]
    places = layout(vectors)
    assert places[sample] == pytest.approx(layout(vectors[sample]), abs=1e-6)
    assert np.median(distances(places[others], places[sample]).min(axis=1)) < 0.02
    for row in others:
        near = sample[np.argsort(np.linalg.norm(vectors[sample] - vectors[row], axis=1))[:5]]
        low, high = places[near].min(axis=0), places[near].max(axis=0)
        assert ((low - 1e-6 <= places[row]) & (places[row] <= high + 1e-6)).all()


def test_the_number_of_threads_has_no_say() -> None:
    vectors = mixture(100, 16, 5)
    with threadpool_limits(2):
        two = layout(vectors)
    with threadpool_limits(1):
        assert layout(vectors).tobytes() == two.tobytes()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("dimension", [1, 7])
def test_small_pools_have_a_place_for_each_image(size: int, dimension: int) -> None:
    places = layout(np.random.default_rng(0).standard_normal((size, dimension)))
    assert places.shape == (size, 2)
    assert ((places >= 0) & (places <= 1)).all()
    assert len(np.unique(places, axis=0)) == size


def test_equal_vectors_have_places_too() -> None:
    places = layout(np.ones((40, 3)))
    assert np.isfinite(places).all()
    assert ((places >= 0) & (places <= 1)).all()


@pytest.mark.parametrize("seed", [18, 28, 36, 79, 98])
def test_rounding_leads_no_place_out_of_the_unit_square(seed: int) -> None:
    places = np.random.default_rng(seed).standard_normal((20, 2)) * 7 + 5
    scaled = module._scaled(places.astype(np.float32))
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    assert np.ptp(scaled, axis=0).max() == pytest.approx(1)
