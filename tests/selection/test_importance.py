"""Equations 3 to 5, and learning gains: values, invariants, refusals."""

import math

import numpy as np
import pytest

from presel.importance import (
    gain_weights,
    instruction_relevance,
    learning_gains,
    task_scores,
    task_weights,
)


def test_relevance_is_the_ratio_of_the_losses() -> None:
    assert instruction_relevance([1.0, 3.0], [2.0, 3.0]).tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("with_question", "without_question", "message"),
    [
        ([], [], "empty"),
        ([1.0], [1.0, 2.0], "1 values and loss_without_question 2"),
        ([math.nan], [1.0], r"loss_with_question\[0\] is nan"),
        ([1.0, 1.0], [1.0, math.inf], r"loss_without_question\[1\] is inf"),
        ([1.0], [0.0], "must be above 0"),
        ([-1.0], [1.0], "never negative"),
        ([[1.0]], [[1.0]], "one-dimensional"),
    ],
)
def test_relevance_refuses(with_question: list[float], without_question: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        instruction_relevance(with_question, without_question)


def test_scores_are_plain_means_in_any_order() -> None:
    values = np.random.default_rng(0).random(50)
    tasks = ["a" if i % 3 else "b" for i in range(50)]
    scores = task_scores(values, tasks)
    order = np.random.default_rng(1).permutation(50)
    assert task_scores(values[order], [tasks[i] for i in order]) == scores
    assert scores["b"] == pytest.approx(values[::3].mean(), abs=1e-15)


def test_scores_refuse_another_length() -> None:
    with pytest.raises(ValueError, match="2 values and tasks 1"):
        task_scores([1.0, 2.0], ["a"])


def test_weights_are_a_softmax_that_favors_low_scores() -> None:
    weights = task_weights({"a": 0.5, "b": 1.0, "c": 1.0, "d": 1.0})
    assert sum(weights.values()) == pytest.approx(1, abs=1e-15)
    assert weights["a"] / weights["b"] == pytest.approx(math.exp(0.5 * 2))
    assert task_weights({"a": 3.0, "b": 3.5}, tau=1e-300) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_weights_refuse_a_bad_temperature(tau: float) -> None:
    with pytest.raises(ValueError, match="tau is"):
        task_weights({"a": 1.0}, tau=tau)


def test_weights_refuse_bad_scores() -> None:
    with pytest.raises(ValueError, match="empty"):
        task_weights({})
    with pytest.raises(ValueError, match=r"scores\[0\] is nan"):
        task_weights({"a": math.nan})


def test_a_gain_is_in_nats_a_response() -> None:
    # 4 tokens of 1 nat less and 2 of half a nat more are 1.5 nats a response; one token is worth a half.
    gains = learning_gains([2.0, 1.0, 1.0], [1.0, 1.5, 0.5], [4, 2, 1], ["a", "a", "b"])
    assert gains == {"a": 1.5, "b": 0.5}


def test_weights_of_gains_are_roots_and_a_loss_gets_nothing() -> None:
    assert gain_weights({"a": 9.0, "b": 1.0, "c": -4.0, "d": 0.0}) == {
        "a": 0.75,
        "b": 0.25,
        "c": 0.0,
        "d": 0.0,
    }
    assert gain_weights({"a": 3.0, "b": 1.0}, exponent=1) == {"a": 0.75, "b": 0.25}
    assert gain_weights({"a": 3.0, "b": 1.0, "c": -1.0}, exponent=0) == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert gain_weights({"a": -3.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    assert gain_weights({"a": 1e300, "b": 1.0}, exponent=10) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 1.0], [1.0], [1, 1], ["a", "a"]), "base_loss has 2 values and tuned_loss 1"),
        (([1.0], [-1.0], [1], ["a"]), r"tuned_loss\[0\] is -1.0; a mean loss is never negative"),
        (([1.0], [1.0], [0], ["a"]), r"n_tokens\[0\] is 0.0; a response has at least one token"),
        (([1.0], [1.0], [1, 1], ["a"]), "n_tokens has 2 values and base_loss 1"),
    ],
)
def test_gains_refuse(arguments: tuple[list[float], list[float], list[int], list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learning_gains(*arguments)


@pytest.mark.parametrize("exponent", [-1.0, math.nan, math.inf])
def test_weights_of_gains_refuse_a_bad_exponent(exponent: float) -> None:
    with pytest.raises(ValueError, match="exponent is"):
        gain_weights({"a": 1.0}, exponent)
