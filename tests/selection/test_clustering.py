"""What all k-means backends guarantee."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

from presel.selection import cluster, clustering, number_of_clusters
from presel.selection.kmeans.search import search_by
from tests.selection.mixtures import mixture

BACKENDS = ["auto", "faiss", "numpy", "released"]


def inertia(vectors: np.ndarray, labels: np.ndarray) -> float:
    means = np.array([vectors[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    return float(np.square(vectors - means[labels]).sum())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_labels_and_centroids_are_valid_and_reproducible(backend: str, dtype: type) -> None:
    vectors = mixture(3000, 160, 40).astype(dtype)
    labels, centroids = cluster(vectors, 30, seed=3, backend=backend)  # type: ignore[arg-type]
    again, _ = cluster(vectors, 30, seed=3, backend=backend)  # type: ignore[arg-type]
    assert (labels == again).all()
    assert labels.shape == (3000,)
    assert centroids.shape == (30, 160)
    assert centroids.dtype == np.float32
    assert (np.bincount(labels, minlength=30) > 0).all()
    nearest = np.square(vectors.astype(np.float32)[:, None] - centroids).sum(-1).argmin(1)
    # scikit-learn's own last step can leave a few rows behind.
    assert (labels == nearest).mean() > 0.99


def smooth(n: int, dimension: int) -> np.ndarray:
    """Unit vectors on a bent surface of few dimensions, without groups."""
    rng = np.random.default_rng(0)
    place, bend, spread = (
        rng.standard_normal(shape, dtype=np.float32) for shape in ((n, 6), (6, 64), (64, dimension))
    )
    vectors = np.tanh(place @ bend / 2) @ spread
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "vectors",
    [
        pytest.param(mixture(4000, 200, 60, seed=1), id="groups"),
        pytest.param(mixture(6000, 300, 200, seed=2, spread=0.3), id="more groups than clusters"),
        pytest.param(mixture(4000, 200, 1, seed=3, spread=5), id="noise"),
        pytest.param(smooth(6000, 300), id="smooth"),
    ],
)
def test_inertia_is_that_of_scikit_learn(vectors: np.ndarray) -> None:
    plain = np.mean([KMeans(60, random_state=seed).fit(vectors).inertia_ for seed in range(3)])
    ours = np.mean([inertia(vectors, cluster(vectors, 60, seed=seed)[0]) for seed in range(3)])
    assert ours <= 1.01 * plain


@pytest.mark.parametrize("backend", BACKENDS[:-1])
def test_no_cluster_is_empty_even_among_equal_vectors(backend: str) -> None:
    vectors = np.repeat(np.eye(3, 8, dtype=np.float32), 20, axis=0)
    labels, _ = cluster(vectors, 7, backend=backend)  # type: ignore[arg-type]
    assert sorted(set(labels)) == list(range(7))


def test_copies_beyond_what_a_cell_holds_are_clustered() -> None:
    vectors = np.ones((1500, 4), np.float32)
    assert len(np.unique(cluster(vectors, 1100)[0])) == 1100


def test_released_leaves_the_clusters_empty_that_scikit_learn_does() -> None:
    vectors = np.repeat(np.eye(3, 8, dtype=np.float32), 20, axis=0)
    labels, centroids = cluster(vectors, 7, backend="released")
    assert len(set(labels)) == 3
    assert centroids.shape == (7, 8)


def test_as_many_clusters_as_vectors() -> None:
    labels, _ = cluster(mixture(12, 8, 3), 12)
    assert sorted(labels) == list(range(12))
    assert cluster(mixture(12, 8, 3), 1)[0].tolist() == [0] * 12


def test_hierarchical_makes_all_clusters_and_stays_near_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = mixture(6000, 32, 200, seed=2, spread=1.0)
    plain, _ = cluster(vectors, 300)
    monkeypatch.setattr(clustering, "HIERARCHICAL_ABOVE", 0)
    labels, centroids = cluster(vectors, 300)
    assert (labels == cluster(vectors, 300)[0]).all()
    assert centroids.shape == (300, 32)
    assert (np.bincount(labels, minlength=300) > 0).all()
    assert inertia(vectors, labels) <= 1.1 * inertia(vectors, plain)


@pytest.mark.parametrize("backend", ["faiss", "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_mapped_file_is_not_copied(tmp_path: Path, backend: str, dtype: type) -> None:
    search_by(backend)  # type: ignore[arg-type]  # imports the library before memory is measured
    path = tmp_path / "features.npy"
    # Above what is worth a working copy.
    vectors = mixture(16_000, 768, 10).astype(dtype)
    np.save(path, vectors)
    size = vectors.nbytes
    del vectors
    mapped = np.load(path, mmap_mode="r")
    tracemalloc.start()
    cluster(mapped, 4, backend=backend, max_iterations=2)  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 8192 * 768 * 4 + 16_000 * 128 * 4 + 2**23
    assert dtype == np.float16 or peak < 1.3 * size


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_vectors_are_named(backend: str) -> None:
    vectors = mixture(20, 8, 2)
    vectors[7, 3] = np.nan
    with pytest.raises(ValueError, match="row 7 has NaN"):
        cluster(vectors, 2, backend=backend)  # type: ignore[arg-type]
    vectors[7] = 0
    with pytest.raises(ValueError, match="row 'image_7' is all zeros"):
        cluster(vectors, 2, backend=backend, ids=[f"image_{i}" for i in range(20)])  # type: ignore[arg-type]


def test_other_refusals() -> None:
    vectors = mixture(20, 8, 2)
    with pytest.raises(ValueError, match="n_clusters is 21 for 20 vectors"):
        cluster(vectors, 21)
    with pytest.raises(ValueError, match="n_clusters is 0"):
        cluster(vectors, 0)
    with pytest.raises(ValueError, match="backend 'magic' is unknown"):
        cluster(vectors, 2, backend="magic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shape"):
        cluster(vectors[0], 1)
    with pytest.raises(ValueError, match="shape"):
        cluster(vectors[:0], 1)
    with pytest.raises(ValueError, match="type int64"):
        cluster(np.ones((4, 4), dtype=np.int64), 1)


def test_number_of_clusters() -> None:
    assert [number_of_clusters(n) for n in (1, 99, 100, 250)] == [1, 1, 1, 2]
    assert number_of_clusters(250, images_per_cluster=50) == 5
    with pytest.raises(ValueError, match="at least 1"):
        number_of_clusters(0)
