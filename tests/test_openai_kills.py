"""Processes that ask a server, and are killed, interrupted, or run side by side."""

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from presel.instructions.answers import Answers, Completion
from presel.instructions.provider import InstructionRequest
from presel.instructions.request_pool import AnswerStatus, RequestPool
from tests.generation_server import Plan, Running, running
from tests.seer import images, kept, provider, reveal

pytestmark = pytest.mark.slow

HARSH = {
    "answer": 50, "429": 8, "wait": 0.2, "500": 8, "400": 4, "garbage": 8, "empty": 5, "half": 5,
    "slow": 0.5, "broken": 5, "drop": 5, "refusal": 3, "chunked": 5, "surrogate": 2, "uncounted": 2,
}  # fmt: skip


def _reveal(url: str, folder: Path, wanted: list[InstructionRequest], changes: dict[str, Any]) -> None:
    # A shell's background job, as the tests themselves may be, inherits that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reveal(Running(url, folder), folder, wanted, **changes)


def started(server: Running, folder: Path, wanted: list[InstructionRequest], **changes: Any) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=_reveal, args=(server.url, folder, wanted, changes)
    )
    process.start()
    return process


def wait_for_answers(folder: Path, count: int, process: Any) -> None:
    """Waits until so many answers are in the file."""
    file = folder / "answers/answers.jsonl"
    while process.is_alive() and (not file.exists() or file.read_bytes().count(b"\n") < count):
        time.sleep(0.01)


def test_two_thousand_requests_on_a_bad_day_and_five_kills(tmp_path: Path) -> None:
    wanted = images(tmp_path, 2000)
    changes = {"timeout_s": 0.5, "max_retries": 4, "attempts": 3}
    names = {image.content[:16]: image.id for image in wanted}
    asks = provider(Running("http://localhost", tmp_path), tmp_path, **changes)
    settled: set[str] = set()
    mark = 0
    with running(tmp_path, Plan(odds=HARSH, seed=1)) as server:
        for run in range(6):
            if run < 5:
                process = started(server, tmp_path, wanted, **changes)
                wait_for_answers(tmp_path, 300 * (run + 1), process)
                assert process.is_alive()
                process.kill()
                process.join()
            else:
                revealed = reveal(server, tmp_path, wanted, **changes)
            assert settled.isdisjoint(names[one.image] for one in server.seen()[mark:])
            mark = len(server.seen())
            unsettled = asks.open_requests(wanted, Answers.read(tmp_path / "answers"))
            settled = set(names.values()) - {image.id for image in unsettled}
            assert len(settled) > 200 * run
    answered = {record.id for record in revealed.records}
    assert len(answered) > 1800
    assert answered.isdisjoint(revealed.unanswered)
    assert answered | revealed.unanswered.keys() == set(names.values())
    assert all(revealed.unanswered.values())
    good = Counter(line["id"] for line in kept(tmp_path) if is_whole(line["raw"]))
    assert good.keys() == answered
    assert set(good.values()) == {1}


def is_whole(raw: dict[str, Any] | str) -> bool:
    """Whether this is the server's good answer, whole."""
    text = raw["choices"][0]["message"]["content"] if isinstance(raw, dict) else raw
    return text.endswith('."}]') and "ud83d" not in text


def test_a_signal_while_the_last_answer_is_stored_ends_the_run() -> None:
    class Storing:
        def send(self, image: InstructionRequest) -> Completion:
            return {}

        def backoff(self, retry: int, retry_after: float) -> float:
            return 0.0

        def store(self, image: InstructionRequest, answer: Completion) -> AnswerStatus:
            signal.raise_signal(signal.SIGINT)
            return AnswerStatus(True, None)

        def store_partial(self, image: InstructionRequest, text: str) -> None:
            raise AssertionError

        def within_budget(self, images: Sequence[InstructionRequest]) -> bool:
            return True

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            RequestPool(
                [InstructionRequest("a", "a.png", "vqa", "0")], Storing(), 1, 0, 0, lambda _: None
            ).run()
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_on_its_way(tmp_path: Path, number: signal.Signals) -> None:
    wanted = images(tmp_path, 200)
    with running(tmp_path, Plan(latency=0.1)) as server:
        process = started(server, tmp_path, wanted, concurrency=8)
        wait_for_answers(tmp_path, 10, process)
        os.kill(process.pid, number)
        process.join()
        assert process.exitcode != 0
        asked = len(server.seen())
        assert 10 <= asked < 200
        assert len(kept(tmp_path)) == asked
        reveal(server, tmp_path, wanted)
        assert len(server.seen()) == 200


def test_ctrl_c_twice_waits_for_nothing(tmp_path: Path) -> None:
    with running(tmp_path, Plan(script=["slow"])) as server:
        process = started(server, tmp_path, images(tmp_path, 20), concurrency=8)
        while len(server.seen()) < 8:
            time.sleep(0.01)
        while process.is_alive():
            os.kill(process.pid, signal.SIGINT)
            process.join(0.2)
        assert process.exitcode != 0


def test_runs_side_by_side_ask_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wanted = images(tmp_path, 40)
    with running(tmp_path, Plan(latency=0.1)) as server:
        first = started(server, tmp_path, wanted, concurrency=2)
        wait_for_answers(tmp_path, 1, first)
        assert len(reveal(server, tmp_path, wanted).records) == 40
        first.join()
        assert len(server.seen()) == 40
    assert "waiting for another run that is adding answers to" in capfd.readouterr().out
