"""What models are asked, what becomes of their answers, and the file that keeps them."""

import json
import multiprocessing
import re
import resource
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import ValidationError

from presel.data.llava import Record, write_records
from presel.errors import PreselError
from presel.instructions.answers import Answers
from presel.instructions.generator import Generator, Refusal, text_of
from presel.instructions.prompts import Prompt, Prompts, UnusableAnswer
from presel.instructions.provider import Cost, InstructionRequest, ProviderResult
from tests.generation_server import completion
from tests.helpers import read_records

IMAGE = InstructionRequest("7", "7.png", "vqa", "digest")
texts = some.text(min_size=1).map(str.strip).filter(bool).filter(lambda text: "<image>" not in text)
pairs = some.lists(some.fixed_dictionaries({"question": texts, "answer": texts}), min_size=1, max_size=5)
json_values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(),
    lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner),
    max_leaves=20,
)


def generator(prompt: Prompt, folder: Path = Path("answers")) -> Generator:
    return Generator(model="seer", prompts=Prompts(kinds={"one": prompt}, default="one"), answers=folder)


def settles(answer: dict[str, Any]) -> ProviderResult:
    """What becomes of an answer to a request for a pair."""
    asks = generator(Prompt(request="Ask."))
    with TemporaryDirectory() as folder, Answers.opened(Path(folder)) as answers:
        answers.add(asks.request_digest(IMAGE), IMAGE.id, answer, Cost(1, 0.0))
        return asks.results([IMAGE], answers)


@given(pairs, some.sampled_from(["{}", "```json\n{}\n```", "```\n{}```", "\n {} \n"]))
def test_a_list_of_questions_and_answers_becomes_a_conversation(
    asked: list[dict[str, str]], form: str
) -> None:
    prompt = Prompt(request="Ask.", max_turns=5, suffix="Be short.")
    turns = prompt.conversation("7", form.replace("{}", json.dumps(asked)))
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * len(asked)
    questions = [turn["value"].removesuffix("\nBe short.") for turn in turns[::2]]
    assert questions[0].startswith("<image>\n")
    assert [questions[0].removeprefix("<image>\n"), *questions[1:]] == [pair["question"] for pair in asked]
    assert [turn["value"] for turn in turns[1::2]] == [pair["answer"] for pair in asked]


def test_a_given_question_is_the_same_for_an_image_wherever_it_stands() -> None:
    prompt = Prompt(request="{question} ({task})", questions=["What?", "Who?", "Where?"])
    asked = {name: prompt.messages(name, "vqa")[0]["content"] for name in map(str, range(40))}
    assert set(asked.values()) == {"What? (vqa)", "Who? (vqa)", "Where? (vqa)"}
    for name, request in asked.items():
        turns = prompt.conversation(name, " A bowl. ")
        assert turns[0]["value"] == f"<image>\n{request.removesuffix(' (vqa)')}"
        assert turns[1]["value"] == "A bowl."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" \n", "blank answer"),
        ("A bowl.", "not JSON"),
        ('{"question": "What?", "answer": "B"}', "not a JSON list"),
        ("[]", "not a JSON list"),
        ("[" * 200_000, "not JSON (maximum recursion depth exceeded"),
        ('[{"question": "What?"}]', "a pair without 'answer'"),
        ('[{"question": "What?", "answer": 4}]', "a pair without 'answer'"),
        ('["What?"]', "a pair without 'question'"),
        ('[{"question": "What?", "answer": "E"}]', "does not match '[A-D]': 'E'"),
        ('[{"question": "What? <image>", "answer": "A"}]', "it contains the image token <image>"),
        (json.dumps([{"question": "What?", "answer": "A"}] * 2), "too many questions: 2"),
    ],
)
def test_an_answer_in_another_form_is_unusable(text: str, reason: str) -> None:
    with pytest.raises(UnusableAnswer) as told:
        Prompt(request="Ask.", answer_pattern="[A-D]").conversation("7", text)
    assert reason in str(told.value)


def test_prompts_are_checked_when_they_are_made() -> None:
    with pytest.raises(ValidationError, match="is not a regular expression"):
        Prompt(request="Ask.", answer_pattern="(")
    with pytest.raises(ValidationError, match="there is no prompt 'two'; choose one of one"):
        Prompts(kinds={"one": Prompt(request="Ask.")}, default="one", by_task={"vqa": "two"})


@pytest.mark.parametrize(
    ("request_", "questions", "wrong"),
    [
        ("{question}", [], "{question}"),
        ("{tsk}: {question}", ["What?"], "{tsk}"),
        ("{question} ({task})", ["What?"], None),
        ('Write {"question": "…", "answer": "…"} about a {task}, {} or { task }.', [], None),
    ],
)
def test_what_stands_for_nothing_is_not_asked(request_: str, questions: list[str], wrong: str | None) -> None:
    if wrong is None:
        assert Prompt(request=request_, questions=questions)
        return
    with pytest.raises(ValidationError, match=re.escape(f"contains {wrong}, which has no value; there are")):
        Prompt(request=request_, questions=questions)


@given(json_values)
def test_whatever_a_server_says_is_an_answer_or_unusable(said: Any) -> None:
    choice = {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
    for answer in (said, {"choices": said}, {"choices": [said]}, {"choices": [{"message": said}]}, choice):
        try:
            assert text_of(answer).strip()
        except UnusableAnswer as error:
            assert str(error)


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, I cannot.",
    "I am very sorry.",
    "Sorry, but I can't.",
    "My apologies, but I can't do that.",
    "I apologize, but I can't look at this.",
    "I'm unable to describe people.",
    "I am currently unable to view images.",
    "\n I'm not able to help with that.",
    "I can't identify who this is.",
    "I can not do that.",
    "I cannot\nreally comply with this request.",
    "I won't be able to fulfill this request.",
    "I will not write that.",
    "I cannot see images.",
    "Unfortunately, I can't share that.",
    "I'm afraid I can't answer that.",
    "As an AI, I cannot look at faces.",
    "As an AI language model, I'm not able to judge this.",
]
ANSWERS = [
    "I canvassed the room.",
    "A sorry sight.",
    "Sorry, we are closed.",
    "I can't help but smile at this picture: a cat sits in a bowl.",
    "I can't see any dogs in the picture.",
    "I'm unable to tell whether it is day or night.",
    "Unfortunately, I can't make out the last digit: 4, 7, and one that is hidden.",
    "As an AI exhibit, the robot cannot move.",
    "The sign says: I cannot help you.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_told_from_answers(text: str) -> None:
    pair = completion(json.dumps([{"question": "What is it?", "answer": text}]))
    with pytest.raises(Refusal, match=r"\Arefused: "):
        text_of(completion(text))
    assert not settles(pair).records
    assert settles(pair).unanswered["7"].startswith("refused: ")


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_told_from_refusals(text: str) -> None:
    assert text_of(completion(text)) == text
    assert settles(completion(json.dumps([{"question": "What is it?", "answer": text}]))).records


@pytest.mark.parametrize(
    "answer",
    [
        completion(None, finish_reason="content_filter"),
        completion(None, message={"content": None, "refusal": "No."}),
    ],
)
def test_refusals_may_be_told_beside_the_text(answer: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=r"\Arefused: "):
        text_of(answer)


def test_a_refusal_among_several_answers_is_not_asked_about_again(tmp_path: Path) -> None:
    asks = generator(Prompt(request="Ask.", max_turns=2), tmp_path)
    said = [{"question": "What?", "answer": "A bowl."}, {"question": "Who?", "answer": REFUSALS[0]}]
    with Answers.opened(tmp_path) as answers:
        answers.add(asks.request_digest(IMAGE), "7", completion(json.dumps(said)), Cost(1, 0.0))
        assert asks.open_requests([IMAGE], answers) == []


def test_a_text_in_parts_is_joined() -> None:
    parts = [
        {"type": "thinking", "text": "Hm."},
        {"type": "text", "text": "A "},
        {"type": "text", "text": "bowl."},
    ]
    assert text_of(completion(None, message={"content": parts})) == "A bowl."
    with pytest.raises(UnusableAnswer, match="blank answer"):
        text_of(completion(None, message={"content": parts[:1]}))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>A bowl?</think>A bowl.", "A bowl."),
        ("\n<think>\nI can't help.\n</think>\nA bowl.", "\nA bowl."),
        ("A bowl? <b></think>A bowl.", "A bowl."),
        ("The page shows <think>A bowl?</think>.", "The page shows <think>A bowl?</think>."),
        ("A bowl, I <think>", "A bowl, I <think>"),
    ],
)
def test_reasoning_is_stripped_from_answers(text: str, left: str) -> None:
    assert text_of(completion(text)) == left


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>A bowl?", "unfinished reasoning"),
        (" <think>A bowl?</think>\n", "blank answer"),
        ("<think>A bowl?</think> I can't help with that.", "refused: I can't help"),
    ],
)
def test_thoughts_make_no_instruction(text: str, reason: str) -> None:
    with pytest.raises(UnusableAnswer, match=reason):
        text_of(completion(text))


def test_refusals_are_not_requested_again_and_malformed_answers_are(tmp_path: Path) -> None:
    asks = generator(Prompt(request="Ask."), tmp_path)
    said = {"1": ["A bowl."] * 2, "2": ["I'm sorry, I can't help."], "3": []}
    images = [IMAGE._replace(id=name) for name in said]
    with Answers.opened(tmp_path) as answers:
        for image in images:
            for text in said[image.id]:
                answers.add(asks.request_digest(image), image.id, completion(text), Cost(1, 0.0))
    assert "instructions.attempts=3 to request another answer for each of the 1 images" in (
        asks.retry_remedy(images)
    )
    assert asks.retry_remedy(images[1:]) == ""


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    asks = generator(Prompt(request="Ask.", questions=["What?"]), tmp_path)
    with Answers.opened(tmp_path) as answers:
        answers.add(asks.request_digest(IMAGE), "7", completion("A \ud83d."), Cost(1, 0.0))
        assert asks.open_requests([IMAGE], answers) == [IMAGE]
    with Answers.opened(tmp_path) as answers:
        answers.add(asks.request_digest(IMAGE), "7", completion("A \U0001f600."), Cost(1, 0.0))
        (record,) = asks.results([IMAGE], answers).records
    write_records(tmp_path / "train.json", [record])
    assert read_records(tmp_path / "train.json") == [record]
    assert isinstance(record, Record)


def test_answers_are_found_again_under_what_was_asked(tmp_path: Path) -> None:
    with Answers.opened(tmp_path) as answers:
        answers.add("one", "7", completion("A"), Cost(10, 0.5), cost_class="dear")
        answers.add("one", "7", completion("B"), Cost(20, 0.5), cost_class="dear")
        answers.add("two", "8", "no JSON", Cost(30, 1.0))
        # Who only looks sees them while they are written.
        for found in (answers, Answers.read(tmp_path)):
            assert found.for_request("one") == [completion("A"), completion("B")]
            assert found.for_request("two") == found.for_request("three") == []
            assert found.of_cost_class("cheap") == []
            assert found.of_cost_class("dear") == [found.for_request("one")]
            assert found.cost == Cost(60, 2.0)


def test_half_a_line_is_cut_off_by_who_adds_and_left_alone_by_who_looks(tmp_path: Path) -> None:
    with Answers.opened(tmp_path) as answers:
        answers.add("one", "7", completion("A"), Cost(10, 0.0))
    file = tmp_path / "answers.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:-9])
    assert Answers.read(tmp_path).for_request("one") == [completion("A")]
    assert file.read_bytes() == whole + whole[:-9]
    with Answers.opened(tmp_path) as answers:
        answers.add("two", "8", completion("B"), Cost(10, 0.0))
    assert file.read_bytes().startswith(whole)
    assert [json.loads(line)["digest"] for line in file.read_bytes().splitlines()] == ["one", "two"]


ANSWER = '{"digest": "a", "id": "7", "kind": "", "tokens": 1, "money": 1.5, "raw": {}}'


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"digest": "one"}',
        "7",
        "[" * 100_000,
        ANSWER.replace('"a"', '["a"]'),
        ANSWER.replace('""', "7"),
        *(ANSWER.replace("1.5", amount) for amount in ("NaN", "-1e9", "1e400", "Infinity", "true", '"1"')),
        *(ANSWER.replace('"tokens": 1', f'"tokens": {amount}') for amount in ("NaN", "-1", f"1{'0' * 400}")),
    ],
)
def test_a_damaged_file_of_answers_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "answers.jsonl").write_text(f"{line}\n")
    with pytest.raises(PreselError, match=r"answers\.jsonl: line 1 is not an answer .*; restore the file"):
        Answers.read(tmp_path)


def _add_until_the_disk_is_full(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with (
        pytest.raises(PreselError, match=r"answers\.jsonl: cannot write an answer \(.*make room"),
        Answers.opened(folder) as answers,
    ):
        while True:
            answers.add("digest", "1", completion("some text"), Cost(1, 0.0))


def test_a_full_disk_is_reported_and_costs_no_whole_answer(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_add_until_the_disk_is_full, args=(tmp_path,)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    size = (tmp_path / "answers.jsonl").stat().st_size
    with Answers.opened(tmp_path) as answers:
        whole = list(answers.for_request("digest"))
        assert whole == [completion("some text")] * len(whole)
        assert (tmp_path / "answers.jsonl").stat().st_size <= size
        answers.add("digest", "1", completion("more"), Cost(1, 0.0))
    assert len(Answers.read(tmp_path).for_request("digest")) == len(whole) + 1 > 2
