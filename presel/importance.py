"""Task importance from instruction relevance: eq. 3 to 5 of the paper."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from presel.selection.arrays import check_all, check_choice

Task = TypeVar("Task", bound=Hashable)


def instruction_relevance(
    loss_with_question: npt.ArrayLike, loss_without_question: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Computes the instruction relevance score of every sample (eq. 3): L_{R|Q,I} / L_{R|I}.

    A low score means that the question helps a lot to predict the response.

    Args:
        loss_with_question: Mean response loss given image and question (eq. 1), shape (n,), at least 0.
        loss_without_question: Mean response loss given the image alone (eq. 2), shape (n,), above 0.

    Returns:
        Scores, shape (n,).

    Raises:
        ValueError: If an argument is empty or not one-dimensional, the lengths differ, a loss is not
            finite or negative, or a loss without question is 0.
    """
    numerator, denominator = _losses(loss_with_question, loss_without_question)
    rule = "eq. 3 divides by it, so it must be above 0"
    check_all(denominator > 0, denominator, "loss_without_question", rule)
    return numerator / denominator


Relevance: TypeAlias = Literal["ratio", "difference", "perplexity_ratio", "response_loss"]


def relevance_scores(
    loss_with_question: npt.ArrayLike, loss_without_question: npt.ArrayLike, score: Relevance = "ratio"
) -> npt.NDArray[np.float64]:
    """Computes the score of eq. 3 or one of its ablations; for each, a low score raises the task's weight.

    Args:
        loss_with_question: As in `instruction_relevance`.
        loss_without_question: As in `instruction_relevance`, but may be 0.
        score: `ratio` is eq. 3; `difference` subtracts the losses; `perplexity_ratio` divides their
            exponentials; `response_loss` is the loss with the question alone.

    Returns:
        Scores, shape (n,). A `ratio` by a loss of 0 is NaN: the model is certain of the response without the
        question, so that the ratio is undefined, and any substitute would dominate the task's mean.

    Raises:
        ValueError: As in `instruction_relevance`, but for losses of 0, or if the score is unknown.
    """
    check_choice(score, "score", Relevance)
    with_question, without_question = _losses(loss_with_question, loss_without_question)
    if score == "response_loss":
        return with_question
    if score == "ratio":
        undefined = np.full_like(with_question, np.nan)
        return np.divide(with_question, without_question, out=undefined, where=without_question > 0)
    difference = with_question - without_question
    return difference if score == "difference" else np.exp(difference)


def task_scores(irs: npt.ArrayLike, tasks: Sequence[Task]) -> dict[Task, float]:
    """Averages the relevance scores of each task (eq. 4).

    Args:
        irs: Instruction relevance scores of the reference samples, shape (n,).
        tasks: The task of every sample, n of them.

    Returns:
        Task to mean score, tasks in the order of their first sample. Sums are exact (`math.fsum`), so that
        scores do not depend on the order of the samples.

    Raises:
        ValueError: If `irs` is empty, not one-dimensional or not finite, or the lengths differ.
    """
    scores = _finite_vector(irs, "irs")
    if len(scores) != len(tasks):
        raise ValueError(f"irs has {len(scores)} values and tasks {len(tasks)}; both need one per sample")
    by_task: dict[Task, list[float]] = {}
    for task, score in zip(tasks, scores.tolist(), strict=True):
        by_task.setdefault(task, []).append(score)
    return {task: math.fsum(values) / len(values) for task, values in by_task.items()}


def task_weights(scores: Mapping[Task, float], tau: float | None = None) -> dict[Task, float]:
    """Turns task scores into the tasks' shares of the budget (eq. 5): softmax(-s / tau).

    Args:
        scores: Task to score s(T), M of them.
        tau: Temperature; None for the paper's 1 / sqrt(M).

    Returns:
        Task to weight, in the order of `scores`; the weights sum to 1.

    Raises:
        ValueError: If there is no task, a score is not finite, or `tau` is not finite and above 0.
    """
    values = _finite_vector(list(scores.values()), "scores")
    if tau is None:
        tau = 1 / math.sqrt(len(values))
    if not (math.isfinite(tau) and tau > 0):
        raise ValueError(f"tau is {tau}; a softmax temperature must be finite and above 0")
    # The largest exponent is 0, so that no temperature, however low, overflows.
    exponentials = np.exp((values.min() - values) / tau)
    total = math.fsum(exponentials.tolist())
    return dict(zip(scores, (exponentials / total).tolist(), strict=True))


def _losses(
    with_question: npt.ArrayLike, without_question: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    one = _finite_vector(with_question, "loss_with_question")
    other = _finite_vector(without_question, "loss_without_question")
    if len(one) != len(other):
        raise ValueError(
            f"loss_with_question has {len(one)} values and loss_without_question {len(other)}; both need one "
            "per sample"
        )
    for values, name in ((one, "loss_with_question"), (other, "loss_without_question")):
        check_all(values >= 0, values, name, "a mean loss is never negative")
    return one, other


def _finite_vector(values: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} has shape {vector.shape}; it must be one-dimensional")
    if not len(vector):
        raise ValueError(f"{name} is empty; at least one value is needed")
    check_all(np.isfinite(vector), vector, name, "every value must be finite")
    return vector
