"""Task importance from instruction relevance (eq. 3 to 5 of the paper), or from learning gains."""

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


RelevanceScore: TypeAlias = Literal["ratio", "difference", "perplexity_ratio", "response_loss"]


def relevance_scores(
    loss_with_question: npt.ArrayLike, loss_without_question: npt.ArrayLike, score: RelevanceScore = "ratio"
) -> npt.NDArray[np.float64]:
    """Computes the score of eq. 3 or one of its ablations; for each, a low score raises the task's weight.

    Args:
        loss_with_question: As in `instruction_relevance`.
        loss_without_question: As in `instruction_relevance`, but may be 0.
        score: `ratio` is eq. 3; `difference` subtracts the losses; `perplexity_ratio` divides their
            exponentials; `response_loss` is L_{R|Q,I} itself, not compared with L_{R|I}.

    Returns:
        Scores, shape (n,). A `ratio` by a loss of 0 is NaN: the model is certain of the response without the
        question, so that the ratio is undefined, and any substitute would dominate the task's mean.

    Raises:
        ValueError: As in `instruction_relevance`, but for losses of 0, or if the score is unknown.
    """
    check_choice(score, "score", RelevanceScore)
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


def learning_gains(
    base_loss: npt.ArrayLike, tuned_loss: npt.ArrayLike, n_tokens: npt.ArrayLike, tasks: Sequence[Task]
) -> dict[Task, float]:
    """Measures how much tuning on other samples lowers the loss of each task's responses.

    The gain of a task is the mean over its samples of n_tokens · (base_loss - tuned_loss), the nats by which
    a whole response becomes more probable. No model may have been tuned on the samples that it scores.

    Args:
        base_loss: Mean loss of the response tokens under the model before tuning, shape (n,), at least 0.
        tuned_loss: The same under the tuned model, shape (n,), at least 0.
        n_tokens: Response tokens of every sample, shape (n,).
        tasks: The task of every sample, n of them.

    Returns:
        Task to gain in nats a response, which is negative where tuning does harm; tasks in the order of their
        first sample, sums as in `task_scores`.

    Raises:
        ValueError: If an argument is empty or not one-dimensional, the lengths differ, a loss is not finite
            or negative, or a number of tokens is below 1.
    """
    before, after = _losses(base_loss, tuned_loss, ("base_loss", "tuned_loss"))
    tokens = _finite_vector(n_tokens, "n_tokens")
    check_all(tokens >= 1, tokens, "n_tokens", "a response has at least one token")
    if len(tokens) != len(before):
        raise ValueError(
            f"n_tokens has {len(tokens)} values and base_loss {len(before)}; both need one per sample"
        )
    return task_scores(tokens * (before - after), tasks)


def gain_weights(gains: Mapping[Task, float], exponent: float = 0.5) -> dict[Task, float]:
    """Turns learning gains into the tasks' shares of the budget: max(gain, 0) ** exponent, summing to 1.

    If the loss of task i falls with its n_i samples as a_i · n_i ** -b, the sum of all losses is lowest with
    n_i proportional to a_i ** (1 / (1 + b)). The gain stands for a_i; the default exponent is that of b = 1.

    Args:
        gains: Task to gain, as `learning_gains` returns them.
        exponent: 0 gives all tasks that gain equal weights, 1 weights proportional to the gains.

    Returns:
        Task to weight, in the order of `gains`. A task that does not gain has weight 0; `fill_tasks` of
        `presel.selection` leaves it the images that are bought already. If no task gains, all weights are
        equal.

    Raises:
        ValueError: If there is no task, a gain is not finite, or `exponent` is not finite or below 0.
    """
    values = _finite_vector(list(gains.values()), "gains")
    if not (math.isfinite(exponent) and exponent >= 0):
        raise ValueError(f"exponent is {exponent}; it must be finite and at least 0")
    positive = np.maximum(values, 0)
    if not positive.any():
        positive = np.ones_like(values)
    # Relative to the largest, so that no exponent overflows. A task that does not gain gets 0, not 0 ** 0.
    shares = np.where(positive > 0, (positive / positive.max()) ** exponent, 0)
    return dict(zip(gains, (shares / math.fsum(shares.tolist())).tolist(), strict=True))


def _losses(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    names: tuple[str, str] = ("loss_with_question", "loss_without_question"),
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    one, other = _finite_vector(first, names[0]), _finite_vector(second, names[1])
    if len(one) != len(other):
        raise ValueError(
            f"{names[0]} has {len(one)} values and {names[1]} {len(other)}; both need one per sample"
        )
    for values, name in zip((one, other), names, strict=True):
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
