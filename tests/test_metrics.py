"""Metrics against answers worked out by hand, and Rel. against the paper's own tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import presel
from presel.evaluation.metrics import METRICS, box_accuracy, cider, exact_match
from presel.evaluation.scores import mean_score, relative_score
from presel.report.tables import PUBLISHED
from presel.storage.files import read_json


def test_exact_match_forgives_case_space_and_a_full_stop() -> None:
    scores = exact_match([" Yes. ", "yes", "no", "2  3"], ["yes", "Yes.", "yes", "2 3"])
    assert scores.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("[0.0, 0.0, 1.0, 1.0]", 1),
        ("[0.0, 0.0, 0.5, 1.0]", 1),  # IoU exactly 0.5
        ("[0.0, 0.0, 0.49, 1.0]", 0),
        ("[1.0, 1.0, 0.0, 0.0]", 0),
        ("no box", 0),
        ("[0.1, 0.2, 0.3]", 0),
    ],
)
def test_a_box_counts_from_half_overlap_on(answer: str, score: int) -> None:
    assert box_accuracy([answer], ["[0.00, 0.00, 1.00, 1.00]"]).tolist() == [score]


def test_a_reference_without_a_box_is_an_error() -> None:
    with pytest.raises(ValueError, match="contains no box"):
        box_accuracy(["[0, 0, 1, 1]"], ["top left"])


def test_cider_is_1_for_the_reference_itself_and_0_for_nothing_in_common() -> None:
    references = ["a red circle on a white wall", "two blue squares in a dark room", "the green cat sat down"]
    assert cider(references, references) == pytest.approx([1, 1, 1])
    assert cider(["entirely different words"] * 3, references) == pytest.approx([0, 0, 0])


def test_cider_by_hand_on_single_words() -> None:
    # One word each, so only 1-grams count: cosine 1, a quarter of the four orders.
    assert cider(["cat"], ["cat"]) == pytest.approx([0.25])
    # Twice the word is clipped to once: min(2, 1)·1 / (2·1) = 1/2; and one word too many is penalised.
    assert cider(["cat cat", "dog"], ["cat", "dog"])[0] == pytest.approx(0.25 * 0.5 * np.exp(-1 / 72))


@pytest.mark.parametrize("metric", METRICS)
def test_no_answer_scores_outside_0_to_1(metric: str) -> None:
    references = ["[0.1, 0.2, 0.3, 0.4] is where", "[0.5, 0.5, 0.9, 0.9] is there"]
    scores = METRICS[metric](["", references[1] * 3], references)
    assert ((scores >= 0) & (scores <= 1)).all()


def _published_tables() -> list[dict[str, Any]]:
    tables = read_json(Path(presel.__file__).parent / "assets" / PUBLISHED)["tables"]
    return [
        tables["table1_llava665k"],
        tables["table2_vision_flan"],
        *tables["table3_architectures"].values(),
    ]


@pytest.mark.parametrize("table", _published_tables())
def test_relative_scores_equal_the_papers(table: list[dict[str, Any]]) -> None:
    full = next(row["scores"] for row in table if row["method"] == "full")
    for row in table:
        found = relative_score(row["scores"], full)
        assert found is not None
        # EL2N in Table 1 recomputes to 93.1 against the printed 93.0.
        assert round(100 * found, 1) == pytest.approx(row["relative"], abs=0.101)


def test_relative_scores_need_a_full_model_above_0() -> None:
    assert relative_score({"a": 0.5}, {"a": 0.0}) is None
    assert relative_score({"a": 0.5, "b": 0.2}, {"a": 1.0, "b": 0.4}) == 0.5
    assert mean_score({"a": 0.5, "b": 0.1}) == pytest.approx(0.3)
