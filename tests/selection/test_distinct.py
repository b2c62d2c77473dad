"""Central images that are unlike those taken before them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.selection.arrays import round_for_ties
from presel.selection.distinct import distinct_ranks
from tests.selection.mixtures import mixture


def by_hand(
    vectors: np.ndarray,
    centrality: np.ndarray,
    labels: np.ndarray,
    available: np.ndarray,
    penalty: float,
    power: float,
) -> np.ndarray:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    ranks = np.full(len(vectors), np.nan)
    for label in set(labels):
        left = [row for row in range(len(labels)) if labels[row] == label and available[row]]
        before = [row for row in range(len(labels)) if labels[row] == label and not available[row]]
        for rank in range(1, len(left) + 1):
            values = [
                centrality[row] - penalty * max([0, *(unit[row] @ unit[other] for other in before)]) ** power
                for row in left
            ]
            row = left.pop(int(np.argmax(np.round(values, 9))))
            ranks[row] = rank
            before.append(row)
    return ranks


@given(
    st.integers(0, 2**31),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([1.0, 8.0]),
)
def test_ranks_by_brute_force(seed: int, n: int, penalty: float, power: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = 3 * mixture(n, 6, 3, seed)
    vectors[n // 2 :] = vectors[: n - n // 2]  # equal images
    labels, available = rng.integers(0, 3, n), rng.random(n) > 0.2
    centrality = np.where(available, rng.random(n).round(1), np.nan)
    ranks = distinct_ranks(vectors, centrality, labels, available, penalty=penalty, power=power)
    np.testing.assert_array_equal(ranks, by_hand(vectors, centrality, labels, available, penalty, power))
    if not penalty:
        for label in set(labels[available]):
            inside = (labels == label) & available
            order = np.argsort(-round_for_ties(centrality[inside]), kind="stable")
            assert ranks[inside][order].tolist() == list(range(1, inside.sum() + 1))


def test_copies_come_last_those_of_bought_images_too() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2, 3]]
    centrality = np.array([np.nan, 0.9, 0.8, 0.7, 0.5, 0.4])
    available = np.arange(6) > 0
    ranks = distinct_ranks(vectors, centrality, np.zeros(6, dtype=np.int64), available)
    assert ranks[1:].tolist() == [4, 1, 5, 2, 3]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"penalty": -1.0}, "penalty is -1.0 and power 8.0"),
        ({"power": 0.0}, "penalty is 1.0 and power 0.0"),
        ({"centrality": np.ones(2)}, r"centrality has shape \(2,\) for 3 images"),
        ({"labels": np.zeros(2, dtype=np.int64)}, r"labels has shape \(2,\) for 3 images"),
    ],
)
def test_mistakes_are_named(changes: dict[str, object], told: str) -> None:
    right: dict[str, object] = {
        "features": np.eye(3, dtype=np.float32),
        "centrality": np.ones(3),
        "labels": np.zeros(3, dtype=np.int64),
        "available": np.ones(3, dtype=np.bool_),
    }
    with pytest.raises(ValueError, match=told):
        distinct_ranks(**(right | changes))  # type: ignore[arg-type]
