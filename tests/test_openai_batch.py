"""Batch files: limits, answers in any order, files that belong elsewhere, requests that are sent again."""

import base64
import json
import os
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.data.llava import LlavaFiles, Record
from presel.errors import Paused, PreselError
from presel.instructions.batch_api import OpenAiBatch, in_files
from presel.instructions.chat_api import OpenAI
from presel.instructions.prompts import Prompt, Prompts
from presel.storage.files import read_json
from tests.helpers import OWN_STORE, Program, on_folder, stage_lines
from tests.waiting import about_two, jobs, paused, wanted

Line = dict[str, Any]
PROMPTS = Prompts(
    kinds={"detail": Prompt(request="{question}", questions=["What is it?"], answer_pattern="[a-z0-9 ]+")},
    default="detail",
)


@pytest.fixture
def service(answers: Path) -> OpenAiBatch:
    return OpenAiBatch(
        model="gpt",
        prompts=PROMPTS,
        answers=answers,
        price_per_million_prompt_tokens=1.0,
        price_per_million_answer_tokens=2.0,
    )


def lines(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def requests(job: Path) -> list[Line]:
    return [line for file in sorted(job.glob("requests-*.jsonl")) for line in lines(file)]


def completed(request: Line, text: str | None = None) -> Line:
    """What the service gives for a request, in the words of its documentation."""
    text = text or f"the answer to {request['custom_id'][:6]}"
    completion = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }
    response = {"status_code": 200, "request_id": "req_1", "body": completion}
    return {"id": "batch_req_1", "custom_id": request["custom_id"], "response": response, "error": None}


def expired(request: Line) -> Line:
    error = {"code": "batch_expired", "message": "This request could not be executed in time."}
    return {"id": "batch_req_1", "custom_id": request["custom_id"], "response": None, "error": error}


def refused(request: Line) -> Line:
    body = {"error": {"message": "max_tokens is too large", "code": "invalid_value"}}
    response = {"status_code": 400, "request_id": "req_1", "body": body}
    return {"id": "batch_req_1", "custom_id": request["custom_id"], "response": response, "error": None}


def put(job: Path, back: Iterable[Line], name: str = "batch_1_output.jsonl") -> Path:
    file = job / "answers" / name
    file.write_text("".join(json.dumps(line) + "\n" for line in back))
    return file


def texts(records: Iterable[Record]) -> dict[str, str]:
    return {record.id: record.conversations[1]["value"] for record in records}


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 8), st.integers(30, 90))
def test_every_file_keeps_within_the_limits(sizes: list[int], max_lines: int, max_bytes: int) -> None:
    given_lines = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    numbered = list(in_files(given_lines, max_lines, max_bytes))
    assert [line for _, line in numbered] == given_lines
    numbers = [number for number, _ in numbered]
    assert sorted(set(numbers)) == list(range(1, max(numbers, default=0) + 1))
    for number in set(numbers):
        held = [line for other, line in numbered if other == number]
        assert len(held) <= max_lines
        assert sum(map(len, held)) <= max_bytes
        following = next((line for other, line in numbered if other == number + 1), None)
        # Nothing is left for the next file that had room here.
        assert following is None or len(held) == max_lines or sum(map(len, [*held, following])) > max_bytes


def test_requests_are_written_as_the_service_takes_them(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, *range(7))
    told = paused(OpenAiBatch(model="gpt", prompts=PROMPTS, answers=answers, max_lines=3), images, files)
    (job,) = jobs(answers)
    assert f"the requests for 7 images wait in 3 files, requests-*.jsonl in {job};" in told
    assert "/v1/chat/completions" in told
    assert "run the same command again" in told
    assert [len(lines(file)) for file in sorted(job.glob("requests-*.jsonl"))] == [3, 3, 1]
    for request, image, row in zip(requests(job), images, read_json(job / "job.json"), strict=True):
        assert request["method"] == "POST"
        assert request["url"] == "/v1/chat/completions"
        assert request["body"]["model"] == "gpt"
        picture, text = request["body"]["messages"][-1]["content"]
        head, content = picture["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(content) == (files.images / image.image).read_bytes()
        assert text == {"type": "text", "text": "What is it?"}
        assert (row["name"], row["id"]) == (request["custom_id"], image.id)


def test_a_request_holds_all_images_of_a_record(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    images = [about_two(files), *wanted(files, 2)]
    paused(service, images, files)
    (job,) = jobs(answers)
    first, second = requests(job)
    *pictures, text = first["body"]["messages"][-1]["content"]
    sent = [base64.b64decode(one["image_url"]["url"].split(",")[1]) for one in pictures]
    assert sent == [(files.images / name).read_bytes() for name in ("0001.png", "0000.png")]
    assert text["type"] == "text"
    assert len(second["body"]["messages"][-1]["content"]) == 2
    put(job, [completed(first), completed(second)])
    record, _ = service.reveal(images, files).records
    assert record.images == ("0001.png", "0000.png")
    assert record.conversations[0]["value"] == "<image>\n<image>\nWhat is it?"


def test_a_request_that_fits_no_file_is_refused(files: LlavaFiles, answers: Path) -> None:
    service = OpenAiBatch(model="gpt", prompts=PROMPTS, answers=answers, max_bytes=500)
    with pytest.raises(PreselError, match=r"0001\.png: a request .* instructions\.image_side"):
        service.reveal(wanted(files, 1), files)
    assert not jobs(answers)


def test_asking_again_before_the_answers_are_there_changes_nothing(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, *range(5))
    first = paused(service, images, files)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in jobs(answers)[0].glob("*.*")}
    assert paused(service, images[::-1], files) == first
    assert len(jobs(answers)) == 1
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before}


def test_an_unfinished_job_is_rewritten(service: OpenAiBatch, files: LlavaFiles, answers: Path) -> None:
    paused(service, wanted(files, 1, 2), files)
    (job,) = jobs(answers)
    (job / "job.json").unlink()
    (job / "requests-00002.jsonl").write_text("left by other limits\n")
    paused(service, wanted(files, 1, 2), files)
    assert jobs(answers) == [job]
    assert len(requests(job)) == 2


def test_answers_come_back_in_any_order_and_count_once(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, *range(6))
    paused(service, images, files)
    (job,) = jobs(answers)
    back = [completed(request) for request in requests(job)]
    expected = {row["id"]: f"the answer to {row['name'][:6]}" for row in read_json(job / "job.json")}
    random.Random(0).shuffle(back)
    put(job, back[:2], "b.jsonl")
    put(job, back[2:], "a.jsonl")
    for _ in range(2):
        revealed = service.reveal(images, files)
        assert texts(revealed.records) == expected
        assert [record.id for record in revealed.records] == list(expected)
        kept = lines(answers / "answers.jsonl")
        assert len(kept) == 6
        assert sum(line["money"] for line in kept) == pytest.approx(6 * (100 * 1.0 + 10 * 2.0) / 1e6)
        assert kept[0]["raw"]["choices"][0]["message"]["content"] in expected.values()
    # Other selections have them too, without a job.
    assert texts(service.reveal(images[2:4], files).records) == dict(list(expected.items())[2:4])
    assert len(jobs(answers)) == 1


Spoil = Callable[[Path, list[Line]], None]


def from_elsewhere(job: Path, back: list[Line]) -> None:
    put(job, [*back, {**back[0], "custom_id": "somebody-else"}])


def twice(job: Path, back: list[Line]) -> None:
    put(job, back, "a.jsonl")
    put(job, back[1:3], "b.jsonl")


def other_ending(job: Path, back: list[Line]) -> None:
    put(job, back, "answers.txt")


def the_requests(job: Path, back: list[Line]) -> None:
    shutil.copy(job / "requests-00001.jsonl", job / "answers")


def a_pipe(job: Path, back: list[Line]) -> None:
    put(job, back)
    os.mkfifo(job / "answers/pipe.jsonl")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (from_elsewhere, r"batch_1_output\.jsonl: 1 of its answers .*'somebody-else'.*another selection"),
        (
            twice,
            r"2 images are answered more than once \('0001', '0002'; the first in a\.jsonl and b\.jsonl\)",
        ),
        (other_ending, r"answers\.txt: .*\.jsonl"),
        (the_requests, r"requests-00001\.jsonl: these are the requests, not the answers"),
        (a_pipe, r"pipe\.jsonl: this is a pipe"),
    ],
)
def test_answers_that_do_not_belong_are_refused(
    spoil: Spoil, message: str, service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, 0, 1, 2, 3)
    paused(service, images, files)
    (job,) = jobs(answers)
    spoil(job, [completed(request) for request in requests(job)])
    with pytest.raises(PreselError, match=message) as told:
        service.reveal(images, files)
    assert not isinstance(told.value, Paused)
    assert not lines(answers / "answers.jsonl")
    # Nothing of it is in the way of the answers.
    shutil.rmtree(job / "answers")
    (job / "answers").mkdir()
    put(job, map(completed, requests(job)))
    assert len(service.reveal(images, files).records) == 4


def no_answers(name: str) -> list[bytes]:
    """Lines that answer nothing, although some name a request."""
    under_a_name: list[Line] = [
        {},
        {"response": None, "error": None},
        {"response": {"status_code": 200, "body": {}}},
        {"response": {"status_code": 200, "body": "<html>"}},
        *({"response": {"status_code": 200, "body": {"choices": one}}} for one in ("abc", {}, [None], [{}])),
        {"response": {"status_code": 200, "body": {"choices": []}}, "error": {}},
        {"response": {"status_code": 200, "body": {"choices": [json.loads("[" * 60 + "]" * 60)]}}},
    ]
    error = {"response": None, "error": {"code": "invalid_json_line", "message": "not JSON"}}
    values = [{"custom_id": name, **line} for line in under_a_name]
    values += [error, error | {"custom_id": None}, error | {"custom_id": ""}, error | {"custom_id": 7}, []]
    malformed = [b"{", b"\xff", b"[" * 100_000, b'{"custom_id": "%s", "resp' % name.encode()]
    return [*(json.dumps(value).encode() for value in values), *malformed]


def test_lines_that_answer_nothing_are_reported_and_cost_no_answer(
    service: OpenAiBatch, files: LlavaFiles, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = wanted(files, 0, 1)
    paused(service, images, files)
    (job,) = jobs(answers)
    first, second = requests(job)
    useless = no_answers(second["custom_id"])
    file = put(job, [completed(first)])
    file.write_bytes(b"\n".join([*useless[::2], file.read_bytes(), *useless[1::2]]))
    with pytest.raises(PreselError, match=r"no answer to 1 requests .* about '0001'; add the rest"):
        service.reveal(images, files)
    assert f"{len(useless)} lines answer no request and are ignored" in capsys.readouterr().out
    assert len(lines(answers / "answers.jsonl")) == 1
    put(job, [completed(second)], "the_rest.jsonl")
    assert len(service.reveal(images, files).records) == 2


def test_an_error_is_replaced_by_an_answer_that_comes_later(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, 0, 1)
    paused(service, images, files)
    (job,) = jobs(answers)
    put(job, [refused(request) for request in requests(job)], "errors.jsonl")
    paused(service, images, files)
    put(job, map(completed, requests(job)))
    for _ in range(2):
        assert len(service.reveal(images, files).records) == 2
        assert len(lines(answers / "answers.jsonl")) == 4


@pytest.mark.parametrize(
    "error",
    [
        {"code": "content_filter", "message": "filtered"},
        {"code": "content_policy_violation", "message": "filtered", "type": "invalid_request_error"},
        {"code": "image_parse_error", "message": "filtered"},
        {"code": "400", "message": "filtered", "innererror": {"code": "ResponsibleAIPolicyViolation"}},
    ],
)
@pytest.mark.parametrize("where", ["body", "line", "both"])
def test_a_content_filter_is_final(
    service: OpenAiBatch, files: LlavaFiles, answers: Path, error: Line, where: str
) -> None:
    images = wanted(files, 0, 1)
    paused(service, images, files)
    (job,) = jobs(answers)
    first, second = requests(job)
    body = {"line": None, "body": {"error": error}, "both": {}}[where]
    response = None if body is None else {"status_code": 400, "body": body}
    line = {
        "custom_id": first["custom_id"],
        "response": response,
        "error": error if where != "body" else None,
    }
    put(job, [line, completed(second)])
    revealed = replace(service, attempts=5).reveal(images, files)
    assert revealed.unanswered == {"0000": "refused: filtered"}
    assert [line["tokens"] for line in lines(answers / "answers.jsonl")] == [0, 110]


def test_an_image_that_changed_meanwhile_is_not_written_into_requests(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, 0, 1)
    shutil.copy(files.images / "0005.png", files.images / "0000.png")
    paused(service, images, files)
    (job,) = jobs(answers)
    put(job, map(completed, requests(job)))
    revealed = service.reveal(images, files)
    assert list(texts(revealed.records)) == ["0001"]
    assert revealed.unanswered == {"0000": "changed since the pool was checked"}


def test_only_the_owner_can_read_requests_and_answers(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    answers.mkdir(mode=0o755)
    images = wanted(files, 0)
    paused(service, images, files)
    (job,) = jobs(answers)
    put(job, map(completed, requests(job))).chmod(0o644)
    (answers / "answers.jsonl").chmod(0o664)
    service.reveal(images, files)
    private = [answers, job, job / "answers", *answers.glob("*.jsonl"), *job.glob("**/*.jsonl")]
    assert len(private) == 6
    assert {file.stat().st_mode & 0o077 for file in private} == {0}


def test_what_failed_or_is_malformed_is_asked_again(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, *range(5))
    paused(service, images, files)
    (first,) = jobs(answers)
    fine, late, malformed, wrong, declined = requests(first)
    put(first, [completed(fine), completed(malformed, "NO!"), completed(declined, "I'm sorry, no.")])
    put(first, [expired(late), refused(wrong)], "errors.jsonl")
    told = paused(service, images, files)
    assert "3 are requested again: '0001' (batch_expired), '0002' (does not match" in told
    assert "'0003' (error: {'message': 'max_tokens is too large'" in told
    _, second = jobs(answers)
    assert [row["id"] for row in read_json(second / "job.json")] == ["0001", "0002", "0003"]
    late, malformed, wrong = requests(second)
    put(second, map(completed, [late, malformed]))
    put(second, [refused(wrong)], "errors.jsonl")
    revealed = service.reveal(images, files)
    assert [record.id for record in revealed.records] == ["0000", "0001", "0002"]
    assert revealed.unanswered == {
        "0003": "error: {'message': 'max_tokens is too large', 'code': 'invalid_value'}",
        "0004": "refused: I'm sorry, no.",
    }
    # A request that was turned down costs nothing.
    assert sorted(line["tokens"] for line in lines(answers / "answers.jsonl")) == [0, 0, *[110] * 5]


def test_missing_answers_are_refused_by_name_and_nothing_is_lost(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, *range(6))
    paused(service, images, files)
    (first,) = jobs(answers)
    put(first, map(completed, requests(first)[:3]))
    for _ in range(2):
        with pytest.raises(
            PreselError, match=r"no answer to 3 .* about '0003', '0004', '0005'; add the rest"
        ) as told:
            service.reveal(images, files)
        assert not isinstance(told.value, Paused)
        assert len(lines(answers / "answers.jsonl")) == 3
        assert jobs(answers) == [first]
    put(first, map(completed, requests(first)[3:5]), "more.jsonl")
    with pytest.raises(PreselError, match="about '0005'; add"):
        service.reveal(images, files)
    # Whoever gives up what is missing asks for it again, and nothing else.
    shutil.rmtree(first)
    paused(service, images, files)
    (second,) = jobs(answers)
    put(second, map(completed, requests(second)))
    assert len(requests(second)) == 1
    assert len(service.reveal(images, files).records) == 6


def test_how_an_image_is_shown_decides_and_the_way_it_is_sent_does_not(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, 0, 1)
    paused(service, images, files)
    (job,) = jobs(answers)
    put(job, map(completed, requests(job)))
    revealed = service.reveal(images, files)
    online = OpenAI(
        model="gpt",
        prompts=PROMPTS,
        answers=answers,
        base_url="http://nowhere.invalid/v1",
        key_variable=None,
        image_side=service.image_side,
    )
    assert online.reveal(images, files) == revealed
    assert online.estimate({"cats": 1}) == service.estimate({"cats": 1})._replace(money=0.0)
    paused(replace(service, image_side=2), images, files)
    assert len(jobs(answers)) == 2


def test_an_answer_that_no_file_can_hold_is_malformed(files: LlavaFiles, answers: Path) -> None:
    prompts = Prompts(kinds={"one": Prompt(request="?", questions=["What?"])}, default="one")
    service = OpenAiBatch(model="gpt", prompts=prompts, answers=answers, attempts=1)
    images = wanted(files, 0, 1)
    paused(service, images, files)
    (job,) = jobs(answers)
    first, second = requests(job)
    put(job, [completed(first, "half an emoji: \ud83d"), completed(second, "a whole one: \U0001f600")])
    for _ in range(2):
        revealed = service.reveal(images, files)
        assert texts(revealed.records) == {"0001": "a whole one: \U0001f600"}
        assert "half of a surrogate pair" in revealed.unanswered["0000"]


def test_answers_survive_deletion_of_their_job(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, 0, 1)
    paused(service, images, files)
    (job,) = jobs(answers)
    put(job, [completed(request, "NO!") for request in requests(job)])
    paused(service, images, files)
    for folder in jobs(answers):
        shutil.rmtree(folder)
    paused(service, images, files)
    (job,) = jobs(answers)
    put(job, map(completed, requests(job)))
    assert len(service.reveal(images, files).records) == 2


def test_a_missing_answer_file_pauses_the_run(files: LlavaFiles, answers: Path) -> None:
    service = OpenAiBatch(model="gpt", prompts=PROMPTS, answers=answers, max_lines=2)
    images = wanted(files, 0, 1, 2, 3)
    paused(service, images, files)
    (job,) = jobs(answers)
    put(job, map(completed, lines(job / "requests-00001.jsonl")))
    assert "the requests for 2 images wait in 1 files" in paused(service, images, files)
    assert jobs(answers) == [job]


def test_no_image_is_asked_about_while_another_selection_waits_for_it(
    service: OpenAiBatch, files: LlavaFiles, answers: Path
) -> None:
    paused(service, wanted(files, 0, 1, 2), files)
    paused(service, wanted(files, 2, 3), files)
    first, second = jobs(answers)
    assert [row["id"] for row in read_json(second / "job.json")] == ["0003"]
    put(first, map(completed, requests(first)))
    put(second, map(completed, requests(second)))
    assert list(texts(service.reveal(wanted(files, 2, 3), files).records)) == ["0002", "0003"]


def test_a_run_pauses_twice_and_ends(in_process: Program, pool_folder: Path) -> None:
    command = [
        "run",
        *on_folder(pool_folder),
        "instructions=openai_batch",
        "instructions.model=gpt",
        "instructions.prompts.default=detail",
        "until=instructions",
        OWN_STORE,
    ]
    answers = pool_folder / "outputs" / "answers"
    asked: list[set[str]] = []
    for _ in range(2):
        result = in_process(*command)
        assert result.returncode == 3, result.stderr
        assert result.stderr.splitlines()[-1].startswith("presel: paused: the requests for ")
        job = jobs(answers)[-1]
        asked.append({row["id"] for row in read_json(job / "job.json")})
        put(job, map(completed, requests(job)))
    reference, selection = asked
    assert len(reference) == 3
    assert len(selection) == 6
    assert not reference & selection
    result = in_process.succeeds(*command)
    assert stage_lines(result.stdout)["model (reference)"] == "reused"
    (train,) = [Path(line.split()[-1]) for line in result.stdout.splitlines() if "training file" in line]
    records = read_json(train)
    assert {record["id"] for record in records} == reference | selection
    assert all(record["conversations"][1]["value"].startswith("the answer to ") for record in records)
