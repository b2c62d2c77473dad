"""Chooses the images of one task: the most central ones of each cluster (eq. 6 and 7)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from presel.selection.allocation import ClusterMode, allocate_clusters
from presel.selection.arrays import (
    BoolVector,
    FloatVector,
    IntVector,
    check_choice,
    check_whole,
    round_for_ties,
)
from presel.selection.centrality import centrality_of
from presel.selection.feature_rows import FeatureRows

Scope: TypeAlias = Literal["cluster", "task"]


def select_from_task(
    features: "npt.ArrayLike | FeatureRows",
    labels: npt.ArrayLike,
    available: npt.ArrayLike,
    budget: float,
    k: int = 5,
    mode: ClusterMode = "exact",
    *,
    scope: Scope = "cluster",
    ids: Sequence[Any] | None = None,
) -> IntVector:
    """Chooses the most central images of each cluster of a task: `task_centrality`, then `most_central`.

    Args:
        features: L2-normalized features of all images of the task, shape (n, d).
        labels: Cluster of every image, whole numbers of at least 0, shape (n,).
        available: Which images can be chosen (False for the reference set), shape (n,), bool.
        budget: Images to choose; in mode `paper` also a real number, see `allocate_clusters`. If there are
            fewer available images, all are chosen.
        k: Neighbors of eq. 7; a cluster with k available images or fewer uses all others.
        mode: How clusters share the budget, see `allocate_clusters`.
        scope: Where neighbors are searched, see `task_centrality`.
        ids: Names of the rows, all different, shape (n,). Ties are broken by id in ascending order, so that
            the selection does not depend on the order of the rows; None: by row number.

    Returns:
        Row numbers: clusters in ascending order of label, inside a cluster by descending centrality. Scores
        are compared rounded to nine decimals, and ties go by id.

    Raises:
        ValueError: If lengths differ, a label is negative or not whole, `available` is not bool, an id occurs
            twice, `k` is below 1, an option is unknown, or a feature vector is refused.
    """
    scores = task_centrality(features, labels, available, k, scope=scope, ids=ids)
    return most_central(scores, labels, available, budget, mode, ids=ids)


def most_central(
    centrality: npt.ArrayLike,
    labels: npt.ArrayLike,
    available: npt.ArrayLike,
    budget: float,
    mode: ClusterMode = "exact",
    *,
    size_exponent: float = 1.0,
    ids: Sequence[Any] | None = None,
) -> IntVector:
    """Chooses as `select_from_task` does, by given scores.

    The scores, shape (n,), are such as those of `task_centrality`; only available images need one.
    `size_exponent` is that of `allocate_clusters`. The other arguments and the result are those of
    `select_from_task`.

    Raises:
        ValueError: As in `select_from_task`, or if an available image has no score.
    """
    scores = np.asarray(centrality, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"centrality has shape {scores.shape}; it must be one score per image")
    clusters, free = checked_labels(labels, available, len(scores))
    if np.isnan(scores[free]).any():
        raise ValueError(
            f"centrality has no score for row {int(np.flatnonzero(free & np.isnan(scores))[0])}, which is "
            "available; give the result of task_centrality for the same images"
        )
    order = id_order(ids, len(scores))
    names, position = np.unique(clusters, return_inverse=True)  # (C,), (n,)
    counts = np.bincount(position[free], minlength=len(names))  # (C,)
    totals = np.bincount(position, minlength=len(names))  # (C,)
    quotas = allocate_clusters(counts, budget, mode, totals, size_exponent=size_exponent)  # (C,)
    # In the order of the ids, which the stable sort keeps among ties.
    candidates = order[free[order]]  # (m,)
    ranked = candidates[np.lexsort((-round_for_ties(scores[candidates]), position[candidates]))]  # (m,)
    rank_in_cluster = np.arange(len(ranked)) - np.repeat(np.cumsum(counts) - counts, counts)  # (m,)
    return ranked[rank_in_cluster < np.repeat(quotas, counts)]


def task_centrality(
    features: "npt.ArrayLike | FeatureRows",
    labels: npt.ArrayLike,
    available: npt.ArrayLike,
    k: int = 5,
    *,
    scope: Scope = "cluster",
    ids: Sequence[Any] | None = None,
) -> FloatVector:
    """Scores the available images of a task (eq. 7).

    Args:
        features: Shape (n, d).
        labels: Cluster of every image, shape (n,).
        available: Which images can be chosen, shape (n,), bool.
        k: Neighbors.
        scope: Where neighbors are searched: among the available images of the image's cluster, as released,
            or of the whole task, whose cost is quadratic in the task's size.
        ids: See `select_from_task`.

    Returns:
        Scores, shape (n,); NaN for images that are not available, 1.0 for the only one of a cluster.

    Raises:
        ValueError: As in `select_from_task`.
    """
    check_whole(k, "k")
    check_choice(scope, "scope", Scope)
    rows = FeatureRows.of(features, ids)
    clusters, free = checked_labels(labels, available, len(rows))
    order = id_order(ids, len(rows))
    scores = np.full(len(rows), np.nan)
    # By id inside a cluster, so that the order of the rows cannot change even the last bit.
    group_of = clusters if scope == "cluster" else np.zeros_like(clusters)  # (n,)
    members = order[free[order]]  # (m,)
    members = members[np.argsort(group_of[members], kind="stable")]
    for group in np.split(members, np.flatnonzero(np.diff(group_of[members])) + 1):
        if len(group):
            scores[group] = centrality_of(rows.subset(group), k)
    return scores


def id_order(ids: Sequence[Any] | None, n_rows: int) -> IntVector:
    """Row numbers, (n_rows,), sorted by id: whole numbers by value, everything else by its text.

    Raises:
        ValueError: If the number of ids differs from `n_rows`, or an id occurs twice.
    """
    if ids is None:
        return np.arange(n_rows)
    if len(ids) != n_rows:
        raise ValueError(f"there are {len(ids)} ids for {n_rows} images; one per image is needed")
    numbers = all(isinstance(name, int | np.integer) for name in ids)
    names = list(ids) if numbers else [str(name) for name in ids]
    order = sorted(range(n_rows), key=names.__getitem__)
    for first, second in pairwise(order):
        if names[first] == names[second]:
            raise ValueError(f"the id {names[first]} occurs twice; ids must be unique")
    return np.array(order, dtype=np.int64)


def checked_labels(labels: npt.ArrayLike, available: npt.ArrayLike, n: int) -> tuple[IntVector, BoolVector]:
    """Labels and availability of n images as arrays.

    Raises:
        ValueError: If one has another shape than (n,) or the wrong type, or a label is negative.
    """
    clusters = np.asarray(labels)
    free = np.asarray(available)
    for name, values in (("labels", clusters), ("available", free)):
        if values.shape != (n,):
            raise ValueError(f"{name} has shape {values.shape} for {n} images; one each is needed")
    if not np.issubdtype(clusters.dtype, np.integer) or clusters.min() < 0:
        raise ValueError(
            "labels must be whole numbers of at least 0, as presel.selection.cluster returns them"
        )
    if free.dtype != np.bool_:
        raise ValueError(
            f"available has type {free.dtype}; it must be bool, True where an image can be chosen"
        )
    return clusters.astype(np.int64), free
