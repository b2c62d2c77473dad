"""Dividing the images of a task into clusters of similar ones."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from presel.selection.checks import check_whole
from presel.selection.feature_rows import FeatureRows, Float32Matrix, IntVector
from presel.selection.kmeans.hierarchical import hierarchical, plain
from presel.selection.kmeans.lloyd import Settings
from presel.selection.kmeans.search import load, load_best

ClusterBackend: TypeAlias = Literal["auto", "faiss", "torch", "sklearn", "numpy", "hierarchical", "released"]

# From here on "auto" takes the hierarchical k-means: below, plain k-means is as fast.
HIERARCHICAL_ABOVE = 1000


# The paper's: C = |T| / 100.
IMAGES_PER_CLUSTER = 100


def number_of_clusters(task_size: int, images_per_cluster: int = IMAGES_PER_CLUSTER) -> int:
    """Sets the number of clusters of a task: C = max(1, floor(|T| / 100)).

    Args:
        task_size: Images of the task, reference images included, at least 1.
        images_per_cluster: The divisor, 100 in the paper, at least 1.

    Raises:
        ValueError: If an argument is below 1.
    """
    if task_size < 1 or images_per_cluster < 1:
        raise ValueError(
            f"task_size is {task_size} and images_per_cluster {images_per_cluster}; both must be at least 1"
        )
    return max(1, task_size // images_per_cluster)


def cluster(
    features: "npt.ArrayLike | FeatureRows",
    n_clusters: int,
    seed: int = 0,
    backend: ClusterBackend = "auto",
    *,
    max_iterations: int = 25,
    tolerance: float = 5e-3,
    ids: Sequence[Any] | None = None,
) -> tuple[IntVector, Float32Matrix]:
    """Divides vectors into clusters by k-means (Euclidean; give L2-normalized vectors to follow the paper).

    Every backend but `released` shares one algorithm and one contract: the result depends on the vectors,
    their order and the seed only; no cluster is empty; the features are read in blocks and copied only where
    they take less than 32 MB in float32, so that a memory-mapped file stays on disk; the start is k-means++
    mended by swaps (`kmeans.init`). Two backends agree but for rounding. Distances come from dot
    products in float32: an offset common to all vectors and large beside their differences costs precision,
    and should be subtracted first.

    Backends:
        auto: `hierarchical` above 1,000 clusters, else faiss where it sees a GPU, numpy where not.
        faiss, torch, sklearn, numpy: Plain k-means, nearest centroids searched by that library; faiss (GPU
            build) and torch use a GPU where they see one.
        hierarchical: Levels of k-means, for tasks so large that C = |T| / 100 makes plain k-means quadratic.
        released: scikit-learn's labels, by the released code's call KMeans(n_clusters, random_state=seed);
            its seed is 12345. All else is the default of the installed version: one start since 1.4, ten in
            the 1.2.2 of the environment that the released code asks for. Slow, and needs a float32 copy of
            the features; equal vectors can leave clusters empty. `max_iterations` and `tolerance` do not
            apply.

    Args:
        features: Shape (n, d), float32 or float16, in memory or memory-mapped.
        n_clusters: C, from 1 to n.
        seed: Decides every draw.
        backend: One of the above.
        max_iterations: Passes over the features at most.
        tolerance: Stop when a pass lowers the inertia by less than this share of it.
        ids: Names of the rows for error messages; None for row numbers.

    Returns:
        Labels, shape (n,), from 0 to C - 1, each at least once unless the backend is `released`; and
        centroids, shape (C, d), float32.

    Raises:
        ValueError: If a vector has a NaN or is zero, the shape is not (n, d), `n_clusters` is not between 1
            and n, an option is out of range, or the backend is unknown or its library not installed.
    """
    if backend not in get_args(ClusterBackend):
        raise ValueError(
            f"backend '{backend}' is unknown; choose one of {', '.join(get_args(ClusterBackend))}"
        )
    if max_iterations < 1 or tolerance < 0:
        raise ValueError(
            f"max_iterations is {max_iterations} and tolerance {tolerance}; they must be at least 1 and 0"
        )
    rows = FeatureRows.of(features, ids)
    check_whole(n_clusters, "n_clusters")
    if not 1 <= n_clusters <= len(rows):
        raise ValueError(
            f"n_clusters is {n_clusters} for {len(rows)} vectors; it must lie between 1 and that"
        )
    if backend == "released":
        return _released(rows, n_clusters, seed)
    by_levels = backend == "hierarchical" or (backend == "auto" and n_clusters > HIERARCHICAL_ABOVE)
    engine = load_best() if backend in ("auto", "hierarchical") else load(backend)
    method = hierarchical if by_levels else plain
    settings = Settings(engine, np.random.default_rng(seed), max_iterations, tolerance)
    result = method(rows, n_clusters, settings)
    return result.labels, result.centroids


def cluster_task(
    rows: FeatureRows, images_per_cluster: int, seed: int, backend: ClusterBackend
) -> tuple[IntVector, Float32Matrix]:
    """Clusters the images of a task: in the order of the rows if `released`, else whatever their order.

    Args:
        rows: The task's features, n vectors.
        images_per_cluster: See `number_of_clusters`.
        seed: See `cluster`.
        backend: See `cluster`.

    Returns:
        See `cluster`.
    """
    clustered = cluster if backend == "released" else cluster_in_any_order
    return clustered(rows, number_of_clusters(len(rows), images_per_cluster), seed, backend)


def cluster_in_any_order(
    rows: FeatureRows, n_clusters: int, seed: int, backend: ClusterBackend = "auto"
) -> tuple[IntVector, Float32Matrix]:
    """Clusters rows as `cluster` does in the order of their content.

    Returns:
        Labels, shape (n,), and centroids, shape (n_clusters, d); the order of the rows has no say in either.
    """
    order = rows.content_order()
    labels = np.empty(len(rows), dtype=np.int64)
    labels[order], centroids = cluster(rows.subset(order), n_clusters, seed, backend)
    return labels, centroids


def _released(rows: FeatureRows, n_clusters: int, seed: int) -> tuple[IntVector, Float32Matrix]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer distinct vectors than clusters: some are left empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(n_clusters=n_clusters, random_state=seed).fit(rows.take(np.arange(len(rows))))
    return model.labels_.astype(np.int64), model.cluster_centers_.astype(np.float32)
