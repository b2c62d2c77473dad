"""How tasks share a budget, for strategies that choose task by task."""

from collections.abc import Mapping
from typing import Literal

import pandas as pd

from presel.importance import Relevance, relevance_scores, task_scores, task_weights
from presel.selection import TaskMode, allocate_tasks
from presel.strategies.base import SelectionContext


def weights_by_pool(context: SelectionContext, weighting: Literal["size", "uniform"]) -> dict[str, float]:
    """Weighs tasks by their number of images, or all equally; the weights sum to 1."""
    sizes = context.pool["task"].value_counts().sort_index()
    counted = sizes if weighting == "size" else sizes.clip(1, 1)
    return dict(zip(sizes.index, (counted / counted.sum()).tolist(), strict=True))


def weights_by_relevance(
    context: SelectionContext, score: Relevance = "ratio", tau: float | None = None
) -> dict[str, float]:
    """Weighs tasks by the relevance of their reference samples (eq. 3 to 5); the weights sum to 1.

    Samples without a defined relevance do not count (`relevance_scores`); a task of such samples alone scores
    1, as if its questions neither helped nor misled.

    Args:
        context: Needs `relevance`.
        score: See `presel.importance.relevance_scores`.
        tau: Temperature of eq. 5; None for 1/sqrt(number of tasks).
    """
    table = context.relevance.merge(context.pool[["id", "task"]], on="id")
    table["relevance"] = relevance_scores(
        table["loss_with_question"].to_numpy(), table["loss_without_question"].to_numpy(), score
    )
    scores = dict.fromkeys(sorted(table["task"].unique()), 1.0)
    defined = table.dropna(subset="relevance")
    if len(defined):
        scores |= task_scores(defined["relevance"], defined["task"].tolist())
    return task_weights(scores, tau)


def split_over_tasks(
    weights: Mapping[str, float], tasks: pd.Series, budget: int, mode: TaskMode = "exact"
) -> dict[str, int]:
    """Number of images to choose of each task, at most those that it has in all modes but some released ones.

    Args:
        weights: Weight of each task.
        tasks: Task of every image that can be chosen.
        budget: Number of images to choose.
        mode: See `allocate_tasks`.
    """
    available = tasks.value_counts()
    sizes = [int(available.get(task, 0)) for task in weights]
    budgets = allocate_tasks(list(weights.values()), sizes, budget, mode)
    return dict(zip(weights, budgets.tolist(), strict=True))
