"""Choosing the images of one task."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from presel.selection.allocation import ClusterMode, allocate_clusters
from presel.selection.centrality import FloatVector, centrality_of
from presel.selection.checks import check_whole
from presel.selection.feature_rows import FeatureRows, IntVector

Scope: TypeAlias = Literal["cluster", "task"]


def comparable(centrality: FloatVector) -> FloatVector:
    """Centrality rounded to nine decimals: equal images differ in the last bits of their dot products."""
    return np.round(centrality, 9)


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
    """Chooses the most central images of each cluster of a task (eq. 6 and 7).

    Where several budgets are tried, `task_centrality` once and `most_central` for each gives the same.

    Args:
        features: L2-normalized features of all images of the task, shape (n, d).
        labels: Cluster of every image, whole numbers of at least 0, shape (n,).
        available: Which images can be chosen (False for the reference set), shape (n,), bool.
        budget: Images to choose; in mode `paper` also a real number, see `allocate_clusters`. More than there
            are available chooses them all.
        k: Neighbors of eq. 7; a cluster with k available images or fewer uses all others.
        mode: How clusters share the budget, see `allocate_clusters`.
        scope: Where neighbors are searched, see `task_centrality`.
        ids: Names of the rows, all different, shape (n,). They break ties, the smaller id first, so that any
            order of the rows gives the same selection; None: row numbers do.

    Returns:
        Row numbers: clusters in ascending order of label, inside a cluster by descending centrality. Scores
        are compared rounded to nine decimals, and ties go by id.

    Raises:
        ValueError: If lengths differ, a label is negative or not whole, `available` is not bool, an id occurs
            twice, `k` is below 1, an option is unknown, or a feature vector is refused.
    """
    rows, clusters, free = _checked(features, labels, available, k=k, scope=scope, ids=ids)
    order = id_order(ids, len(rows))
    position, counts, quotas = _quotas(clusters, free, budget, mode)
    # Of clusters that give nothing no score is needed.
    wanted = free if scope == "task" else free & (quotas[position] > 0)
    scores = _scores(rows, position, wanted, order, k=k, scope=scope)
    return _best(scores, position, order[free[order]], counts, quotas)


def most_central(
    centrality: npt.ArrayLike,
    labels: npt.ArrayLike,
    available: npt.ArrayLike,
    budget: float,
    mode: ClusterMode = "exact",
    *,
    ids: Sequence[Any] | None = None,
) -> IntVector:
    """Chooses as `select_from_task` does, by scores that are at hand.

    Args:
        centrality: Scores such as those of `task_centrality`, shape (n,); only available images need one.
        labels: See `select_from_task`, like all that follow.
        available: Which images can be chosen, shape (n,), bool.
        budget: Images to choose.
        mode: How clusters share the budget.
        ids: Names of the rows, which break ties.

    Returns:
        Row numbers, in the order of `select_from_task`.

    Raises:
        ValueError: As in `select_from_task`, or if an available image has no score.
    """
    scores = np.asarray(centrality, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"centrality has shape {scores.shape}; it must be one score per image")
    clusters, free = _checked_labels(labels, available, len(scores))
    if np.isnan(scores[free]).any():
        raise ValueError(
            f"centrality has no score for row {int(np.flatnonzero(free & np.isnan(scores))[0])}, which is "
            "available; give the result of task_centrality for the same images"
        )
    order = id_order(ids, len(scores))
    position, counts, quotas = _quotas(clusters, free, budget, mode)
    return _best(scores, position, order[free[order]], counts, quotas)


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
            or of the whole task, which costs the square of the task's size.
        ids: See `select_from_task`.

    Returns:
        Scores, shape (n,); NaN for images that are not available, 1.0 for the only one of a cluster.

    Raises:
        ValueError: As in `select_from_task`.
    """
    rows, clusters, free = _checked(features, labels, available, k=k, scope=scope, ids=ids)
    return _scores(rows, clusters, free, id_order(ids, len(rows)), k=k, scope=scope)


def id_order(ids: Sequence[Any] | None, n_rows: int) -> IntVector:
    """Sorts rows by id: whole numbers by value, everything else by its text.

    Args:
        ids: One per row, all different; None for row numbers.
        n_rows: Rows.

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


def _quotas(
    labels: IntVector, free: npt.NDArray[np.bool_], budget: float, mode: ClusterMode
) -> tuple[IntVector, IntVector, IntVector]:
    """Each image's cluster from 0, (n,); of each cluster, (C,), its available images and what it gives."""
    names, position = np.unique(labels, return_inverse=True)
    counts = np.bincount(position[free], minlength=len(names))
    quotas = allocate_clusters(counts, budget, mode, np.bincount(position, minlength=len(names)))
    return position, counts, quotas


def _best(
    scores: FloatVector, position: IntVector, candidates: IntVector, counts: IntVector, quotas: IntVector
) -> IntVector:
    """The best of each cluster; candidates stand in the order of their ids, which the stable sort keeps."""
    ranking = np.lexsort((-comparable(scores[candidates]), position[candidates]))
    ranked = candidates[ranking]
    place = np.arange(len(ranked)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranked[place < np.repeat(quotas, counts)]


def _scores(
    rows: FeatureRows,
    labels: IntVector,
    wanted: npt.NDArray[np.bool_],
    order: IntVector,
    *,
    k: int,
    scope: Scope,
) -> FloatVector:
    scores = np.full(len(rows), np.nan)
    members = order[wanted[order]]
    if not len(members):
        return scores
    if scope == "task":
        scores[members] = centrality_of(rows.subset(members), k)
        return scores
    # By id inside a cluster: the order of the rows then cannot change even the last bit.
    members = members[np.argsort(labels[members], kind="stable")]
    for group in np.split(members, np.flatnonzero(np.diff(labels[members])) + 1):
        scores[group] = centrality_of(rows.subset(group), k)
    return scores


def _checked(
    features: "npt.ArrayLike | FeatureRows",
    labels: npt.ArrayLike,
    available: npt.ArrayLike,
    *,
    k: int,
    scope: Scope,
    ids: Sequence[Any] | None,
) -> tuple[FeatureRows, IntVector, npt.NDArray[np.bool_]]:
    check_whole(k, "k")
    if scope not in get_args(Scope):
        raise ValueError(f"scope '{scope}' is unknown; choose one of {', '.join(get_args(Scope))}")
    rows = FeatureRows.of(features, ids)
    return rows, *_checked_labels(labels, available, len(rows))


def _checked_labels(
    labels: npt.ArrayLike, available: npt.ArrayLike, n: int
) -> tuple[IntVector, npt.NDArray[np.bool_]]:
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
