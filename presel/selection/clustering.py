"""Clusters the images of a task by their features."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from presel.selection.arrays import Float32Matrix, IntVector, check_choice, check_whole
from presel.selection.feature_rows import FeatureRows
from presel.selection.kmeans.hierarchical import hierarchical, plain
from presel.selection.kmeans.lloyd import Settings
from presel.selection.kmeans.search import search_by

ClusterBackend: TypeAlias = Literal["auto", "numpy", "faiss", "released"]

# Above this number of clusters `auto` is hierarchical; below, plain k-means is as fast.
HIERARCHICAL_ABOVE = 1000

# The paper's: C = |T| / 100.
IMAGES_PER_CLUSTER = 100


def number_of_clusters(task_size: int, images_per_cluster: int = IMAGES_PER_CLUSTER) -> int:
    """Number of clusters of a task: C = max(1, floor(|T| / 100)).

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
    canonical_order: bool = False,
    max_iterations: int = 25,
    tolerance: float = 5e-3,
    ids: Sequence[Any] | None = None,
) -> tuple[IntVector, Float32Matrix]:
    """Clusters vectors by k-means (Euclidean; give L2-normalized vectors to follow the paper).

    All backends but `released` run the same algorithm and guarantee the same: the result depends only on the
    vectors, their order and the seed; no cluster is empty; features are read in blocks and copied only if
    they take less than 32 MB in float32, so that a memory-mapped file stays on disk. Two backends agree up to
    rounding. Distances come from dot products in float32: subtract an offset that is common to all vectors
    and large compared with their differences.

    Backends:

    - `auto`: faiss if it sees a GPU, else numpy; above 1,000 clusters hierarchical (`kmeans.hierarchical`),
      since at C = |T| / 100 the cost of plain k-means is quadratic in the task's size.
    - `numpy`, `faiss`: Plain k-means, nearest centroids searched by that library; faiss uses all GPUs that it
      sees.
    - `released`: scikit-learn's labels, by the released code's call KMeans(n_clusters, random_state=seed),
      whose seed is 12345, with the other defaults of the installed version: one start since 1.4, ten in
      1.2.2, which the released code requires. Slow; needs a float32 copy of the features; equal vectors can
      leave clusters empty. `max_iterations` and `tolerance` have no effect.

    Args:
        features: Shape (n, d), float32 or float16, in memory or memory-mapped.
        n_clusters: C, from 1 to n.
        seed: Seeds every random draw.
        backend: One of the above.
        canonical_order: Whether to cluster the rows in an order computed from the vectors, so that the result
            does not depend on the order in which they are given.
        max_iterations: Maximum number of passes over the features.
        tolerance: Stop when a pass lowers the inertia by less than this share of it.
        ids: Names of the rows for error messages; None for row numbers.

    Returns:
        Labels, shape (n,), from 0 to C - 1, each at least once unless the backend is `released`; and
        centroids, shape (C, d), float32.

    Raises:
        ValueError: If a vector has a NaN or is zero, the shape is not (n, d), `n_clusters` is not between 1
            and n, an option is out of range, or the backend is unknown or its library not installed.
    """
    check_choice(backend, "backend", ClusterBackend)
    if max_iterations < 1 or tolerance < 0:
        raise ValueError(
            f"max_iterations is {max_iterations} and tolerance {tolerance}; they must be at least 1 and 0"
        )
    rows = FeatureRows.of(features, ids)
    check_whole(n_clusters, "n_clusters")
    if n_clusters > len(rows):
        raise ValueError(f"n_clusters is {n_clusters} for {len(rows)} vectors; there cannot be more of them")
    if canonical_order:
        order = rows.content_order()  # (n,)
        rows = rows.subset(order)
    if backend == "released":
        labels, centroids = _released(rows, n_clusters, seed)
    else:
        settings = Settings(search_by(backend), np.random.default_rng(seed), max_iterations, tolerance)
        method = hierarchical if backend == "auto" and n_clusters > HIERARCHICAL_ABOVE else plain
        labels, centroids, _ = method(rows, n_clusters, settings)
    if canonical_order:
        labels[order] = labels.copy()
    return labels, centroids


def _released(rows: FeatureRows, n_clusters: int, seed: int) -> tuple[IntVector, Float32Matrix]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # scikit-learn warns of fewer distinct vectors than clusters: some clusters are then empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(n_clusters=n_clusters, random_state=seed).fit(rows.take(np.arange(len(rows))))
    return model.labels_.astype(np.int64), model.cluster_centers_.astype(np.float32)
