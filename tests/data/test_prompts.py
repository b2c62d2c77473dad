"""Prompts: equal to what the released code writes, and what is refused."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from presel.data.prompts import TEMPLATES, Turn, chat_template, render
from presel.export.formats import content_parts

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "parity" / "conversation.json").read_text(encoding="utf-8")
)
ROWS: list[dict[str, Any]] = GOLDEN["rows"]
WITH_IMAGE = [row for row in ROWS if "prompt_without_question" in row]

VICUNA, PLAIN = TEMPLATES["vicuna_v1"], TEMPLATES["plain"]
QUESTION: Turn = {"from": "human", "value": "<image>\nWhat is it?"}
ANSWER: Turn = {"from": "gpt", "value": "A cat."}


def prompt(pieces: list[tuple[str, bool]]) -> str:
    """Joins all pieces."""
    return "".join(text for text, _ in pieces)


def supervised(pieces: list[tuple[str, bool]]) -> list[str]:
    """Keeps the pieces that the loss is taken on."""
    return [text for text, is_supervised in pieces if is_supervised]


@pytest.mark.parametrize("row", ROWS)
def test_renders_as_the_released_code(row: dict[str, Any]) -> None:
    pieces = TEMPLATES[GOLDEN["template"]].render(row["conversations"])
    assert prompt(pieces) == row["prompt"]
    assert supervised(pieces) == row["supervised"]


def test_a_template_is_rendered_by_its_name() -> None:
    turns = [QUESTION, ANSWER]
    assert render(turns) == VICUNA.render(turns)
    assert render(turns, "plain", question=False) == PLAIN.render(turns, question=False)
    with pytest.raises(ValueError, match="template 'alpaca' is unknown; choose one of vicuna_v1, plain"):
        render(turns, "alpaca")


@pytest.mark.parametrize("row", WITH_IMAGE)
def test_renders_without_question_as_the_released_code(row: dict[str, Any]) -> None:
    pieces = TEMPLATES[GOLDEN["template"]].render(row["conversations"], question=False)
    assert prompt(pieces) == row["prompt_without_question"]
    assert supervised(pieces) == row["supervised_without_question"]


def test_golden_file_covers_both_forms() -> None:
    assert 0 < len(WITH_IMAGE) < len(ROWS)


def test_plain_template_has_no_system_prompt() -> None:
    assert PLAIN.render([QUESTION, ANSWER]) == [
        ("USER: <image>\nWhat is it? ASSISTANT:", False),
        (" ", False),
        ("A cat.</s>", True),
    ]


def test_open_question_ends_where_the_model_goes_on() -> None:
    pieces = VICUNA.render([QUESTION])
    assert prompt(pieces).endswith("USER: <image>\nWhat is it? ASSISTANT:")
    assert supervised(pieces) == []


def test_open_question_without_its_text_keeps_the_image() -> None:
    pieces = PLAIN.render([QUESTION], question=False)
    assert pieces == [("USER: <image> ASSISTANT:", False)]


SEVERAL = ["<image>\n<image>\nWhich is older?", "Is <image> older than <image>?", "A: <image>\nB: <image>"]


@pytest.mark.parametrize("question", SEVERAL)
def test_several_images_stay_at_their_places(question: str) -> None:
    turns: list[Turn] = [{"from": "human", "value": question}, ANSWER, QUESTION, ANSWER]
    assert prompt(PLAIN.render(turns)) == (
        f"USER: {question} ASSISTANT: A cat.</s>USER: <image>\nWhat is it? ASSISTANT: A cat.</s>"
    )
    assert prompt(PLAIN.render(turns, question=False)).startswith("USER: <image>\n<image>\n<image> ASSIST")


@pytest.mark.parametrize("question", SEVERAL)
def test_the_stored_chat_template_puts_them_there_too(question: str) -> None:
    messages = [{"role": "user", "content": content_parts(question)}]
    template = chat_template("plain")
    (rendered,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True)
    assert rendered == prompt(PLAIN.render([{"from": "human", "value": question}]))


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ([ANSWER, QUESTION], r"turn 0 is from 'gpt' instead of 'human'"),
        ([QUESTION, QUESTION], r"turn 1 is from 'human' instead of 'gpt'"),
        ([QUESTION, ANSWER, ANSWER], r"turn 2 is from 'gpt' instead of 'human'"),
        ([{"from": "system", "value": "Be kind."}, QUESTION], r"turn 0 is from 'system'"),
    ],
)
def test_turns_that_do_not_alternate(conversations: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VICUNA.render(cast(list[Turn], conversations))


def test_nothing_is_left_of_a_text_only_conversation_without_its_question() -> None:
    with pytest.raises(ValueError, match="without an image"):
        VICUNA.render([{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], question=False)
