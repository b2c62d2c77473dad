"""How tasks share a budget, for strategies that choose task by task."""

import math
from collections.abc import Mapping
from typing import Literal

import pandas as pd

from presel.importance import (
    RelevanceScore,
    gain_weights,
    learning_gains,
    relevance_scores,
    task_scores,
    task_weights,
)
from presel.selection import TaskMode, allocate_tasks, fill_tasks
from presel.selection.arrays import BoolVector
from presel.strategies.base import SelectionContext

# Scores of questions that neither help nor mislead.
_NEUTRAL: dict[RelevanceScore, float] = {"ratio": 1.0, "perplexity_ratio": 1.0, "difference": 0.0}


def weights_by_pool(context: SelectionContext, weighting: Literal["size", "uniform"]) -> dict[str, float]:
    """Weighs tasks by their number of images, or all equally; the weights sum to 1."""
    sizes = context.pool["task"].value_counts().sort_index()
    counted = sizes if weighting == "size" else sizes.clip(1, 1)
    return dict(zip(sizes.index, (counted / counted.sum()).tolist(), strict=True))


def weights_by_relevance(
    context: SelectionContext, score: RelevanceScore = "ratio", tau: float | None = None
) -> dict[str, float]:
    """Weighs tasks by the relevance of their reference samples (eq. 3 to 5); the weights sum to 1.

    Samples without a defined relevance do not count (`relevance_scores`); a task without any other, or whose
    reference samples all lack an instruction, scores as if its questions neither helped nor misled.
    `response_loss` has no such neutral value; there it scores the mean of the other tasks.

    Args:
        context: Needs `relevance`.
        score: See `presel.importance.relevance_scores`.
        tau: Temperature of eq. 5; None for 1/sqrt(number of tasks).
    """
    return _weights_of(context.relevance, context.pool, score, tau)


def weights_by_image_relevance(
    context: SelectionContext, score: RelevanceScore = "ratio", tau: float | None = None
) -> dict[str, float]:
    """Weighs tasks as `weights_by_relevance` does, by how much the image helps in place of the question.

    The loss given image and question is compared with that given the image of another sample of the task.

    Args:
        context: Needs `relevance` and `swapped_relevance`.
        score: See `presel.importance.relevance_scores`.
        tau: Temperature of eq. 5; None for 1/sqrt(number of tasks).
    """
    swapped = context.swapped_relevance.set_index("id")["loss_with_question"]
    losses = context.relevance.assign(loss_without_question=context.relevance["id"].map(swapped))
    return _weights_of(losses, context.pool, score, tau)


def weights_by_gain(context: SelectionContext, exponent: float = 0.5) -> dict[str, float]:
    """Weighs tasks by the learning gains of their reference samples; the weights sum to 1.

    Args:
        context: Needs `learning_gain`.
        exponent: See `presel.importance.gain_weights`.
    """
    table = context.learning_gain
    gains = learning_gains(table["loss_base"], table["loss_tuned"], table["n_tokens"], table["task"].tolist())
    tasks = sorted(context.pool["task"].unique())
    # A task whose reference samples all lack an instruction has no gain.
    return gain_weights({task: gains.get(task, 0.0) for task in tasks}, exponent)


def _weights_of(
    losses: pd.DataFrame, pool: pd.DataFrame, score: RelevanceScore, tau: float | None
) -> dict[str, float]:
    table = losses.merge(pool[["id", "task"]], on="id")
    table["relevance"] = relevance_scores(
        table["loss_with_question"].to_numpy(), table["loss_without_question"].to_numpy(), score
    )
    defined = table.dropna(subset="relevance")
    measured = task_scores(defined["relevance"], defined["task"].tolist()) if len(defined) else {}
    neutral = _NEUTRAL.get(score, math.fsum(measured.values()) / max(1, len(measured)))
    tasks = sorted(pool["task"].unique())
    return task_weights({task: measured.get(task, neutral) for task in tasks}, tau)


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


def fill_over_tasks(
    weights: Mapping[str, float], tasks: pd.Series, bought: BoolVector, budget: int
) -> dict[str, int]:
    """Number of images to choose of each task besides those bought, which count in its share of the budget.

    Args:
        weights: Weight of each task.
        tasks: Task of every image, (n,).
        bought: Which images are bought already, (n,).
        budget: Number of images, those included.
    """
    bought_sizes, sizes = (counted.value_counts() for counted in (tasks[bought], tasks))
    bought_of_each = [int(bought_sizes.get(task, 0)) for task in weights]
    added = fill_tasks(list(weights.values()), bought_of_each, sizes[list(weights)], budget)
    return dict(zip(weights, added.tolist(), strict=True))
