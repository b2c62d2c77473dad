"""Instructions from a real server on 127.0.0.1 that misbehaves in every way a server can."""

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from presel.data.llava import TaskRule
from presel.data.sources import LlavaFiles, Source
from presel.errors import PreselError
from presel.generation.answers import Answers
from presel.generation.openai import OpenAI
from presel.ledger import Revealed, Wanted
from presel.paths import config_folder
from presel.store import identity
from tests.conftest import Program, on_folder
from tests.generation_server import Plan, Running, running

KEY = "sk-very/secret-0123456789"
HARSH = {
    "answer": 50, "429": 8, "wait": 0.2, "500": 8, "400": 4, "garbage": 8, "empty": 5, "half": 5,
    "slow": 0.5, "broken": 5, "drop": 5, "refusal": 3, "chunked": 5, "surrogate": 2, "uncounted": 2,
}  # fmt: skip


def prompts() -> Any:
    return instantiate(OmegaConf.load(config_folder() / "instructions/prompts/default.yaml"), _convert_="all")


def provider(server: Running, folder: Path, **changes: Any) -> OpenAI:
    """A provider that does not wait long."""
    settings: dict[str, Any] = {
        "model": "seer",
        "prompts": prompts(),
        "base_url": server.url,
        "key_variable": None,
        "answers": folder / "answers",
        "backoff_s": 0.01,
        "timeout_s": 30.0,
        "max_unanswered_share": 1.0,
    }
    return OpenAI(**(settings | changes))


def images(folder: Path, count: int, task: str = "vqa") -> list[Wanted]:
    """Small images, each different."""
    (folder / "images").mkdir()
    wanted = []
    for number in range(count):
        file = folder / "images" / f"{number:05}.png"
        Image.fromarray(np.full((4, 4, 3), (*divmod(number, 256), 7), np.uint8)).save(file)
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        wanted.append(Wanted(f"{number:05}", file.name, task, content))
    return wanted


def files(folder: Path) -> LlavaFiles:
    return LlavaFiles(folder / "none.json", folder / "images", TaskRule())


def reveal(server: Running, folder: Path, wanted: Sequence[Wanted], **changes: Any) -> Revealed:
    return provider(server, folder, **changes).reveal(wanted, files(folder))


def kept(folder: Path) -> list[dict[str, Any]]:
    """The lines of the answers file."""
    return [json.loads(line) for line in (folder / "answers/answers.jsonl").read_bytes().splitlines()]


def test_an_answer_becomes_a_conversation_and_is_never_asked_for_again(tmp_path: Path) -> None:
    wanted = images(tmp_path, 20)
    with running(tmp_path, Plan()) as server:
        revealed = reveal(server, tmp_path, wanted)
        assert not revealed.unanswered
        for image, record in zip(wanted, revealed.records, strict=True):
            assert (record.id, record.image, record.task) == (image.id, image.image, "vqa")
            assert record.conversations == (
                {"from": "human", "value": "<image>\nWhich image is this?"},
                {"from": "gpt", "value": f"It is {image.content[:16]}."},
            )
        # Neither prices nor the pace ask anything anew.
        assert (
            reveal(server, tmp_path, wanted, concurrency=1, price_per_million_prompt_tokens=1.0) == revealed
        )
        assert len(server.seen()) == 20
        body = server.seen()[0].body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("seer", 0.2, 800)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "kind: vqa" in body["messages"][1]["content"][1]["text"]


@pytest.mark.parametrize(
    "reply",
    [
        "408",
        "409",
        "429",
        "500",
        "503",
        "garbage",
        "drop",
        "broken",
        "slow",
        "trickle",
        "wait",
        "wait until",
        "gateway",
    ],
)
def test_what_may_pass_is_asked_again(tmp_path: Path, reply: str) -> None:
    wanted = images(tmp_path, 1)
    timeout = 0.3 if reply in ("slow", "trickle") else 30.0
    with running(tmp_path, Plan(script=[reply, "answer"])) as server:
        revealed = reveal(server, tmp_path, wanted, timeout_s=timeout)
        seen = server.seen()
    assert [record.id for record in revealed.records] == ["00000"]
    assert [one.reply for one in seen] == [reply, "answer"]
    if reply.startswith("wait"):
        assert seen[1].time - seen[0].time >= (0.49 if reply == "wait a little" else 0.99)


@pytest.mark.parametrize("reply", ["400", "403", "404", "413", "422", "500", "garbage", "drop", "gateway"])
def test_an_image_without_an_answer_is_listed_and_asked_about_in_the_next_run(
    tmp_path: Path, reply: str
) -> None:
    wanted = images(tmp_path, 1)
    passing = reply in ("500", "garbage", "drop", "gateway")
    times = 3 if passing else 1
    with running(tmp_path, Plan(script=[*[reply] * times, "answer"])) as server:
        unanswered = reveal(server, tmp_path, wanted, max_retries=2).unanswered
        assert len(server.seen()) == times
        assert list(unanswered) == ["00000"]
        told = {
            "garbage": "an answer that is no JSON",
            "drop": "connection dropped",
            "gateway": "429 busy behind",
        }
        assert unanswered["00000"].startswith(told.get(reply, f"{reply} {reply} for the key None"))
        assert unanswered["00000"].endswith(", after 3 requests") == passing
        assert len(reveal(server, tmp_path, wanted).records) == 1


def test_an_answer_that_is_no_json_is_kept_and_counts_as_spent(tmp_path: Path) -> None:
    with running(tmp_path, Plan(script=["garbage", "answer"])) as server:
        reveal(server, tmp_path, images(tmp_path, 1))
    garbage, answer = kept(tmp_path)
    assert garbage["raw"] == "<html>\ufffd{{{"
    assert garbage["tokens"] > 1000
    assert answer["tokens"] == 110


@pytest.mark.parametrize("reply", ["slow", "broken", "trickle"])
def test_what_did_not_arrive_whole_may_have_been_charged_for(tmp_path: Path, reply: str) -> None:
    wanted = images(tmp_path, 1)
    with running(tmp_path, Plan(script=[reply, "answer"])) as server:
        asks = provider(server, tmp_path, timeout_s=30.0 if reply == "broken" else 0.3)
        asks.reveal(wanted, files(tmp_path))
    lost, answer = kept(tmp_path)
    assert lost["tokens"] == asks.cost(asks.expected("vqa")).tokens
    assert ("chat.completion" in lost["raw"]) == (reply != "slow")
    assert answer["tokens"] == 110


@pytest.mark.parametrize("reply", ["garbage", "broken", "slow"])
def test_the_cap_holds_where_no_answer_arrives_whole(tmp_path: Path, reply: str) -> None:
    wanted = images(tmp_path, 30)
    with running(tmp_path, Plan(script=[reply])) as server:
        asks = provider(server, tmp_path, concurrency=4, timeout_s=0.3 if reply == "slow" else 30.0)
        one = asks.cost(asks.expected("vqa")).tokens
        with pytest.raises(PreselError, match="max_tokens_total"):
            replace(asks, max_tokens_total=6 * one).reveal(wanted, files(tmp_path))
        assert len(server.seen()) == len(kept(tmp_path)) == 6


def test_the_cap_learns_what_images_cost(tmp_path: Path) -> None:
    wanted = images(tmp_path, 30)
    with running(tmp_path, Plan()) as server:
        asks = provider(server, tmp_path, concurrency=1, image_tokens=0, parameters={"max_tokens": 1})
        dear = replace(asks, max_tokens_total=1000)
        with pytest.raises(PreselError, match="the next may take 1"):
            dear.reveal(wanted, files(tmp_path))
        assert 880 <= sum(line["tokens"] for line in kept(tmp_path)) <= 1000


@pytest.mark.parametrize(
    ("usage", "prompt", "answer", "counted"),
    [
        ({"prompt_tokens": 300, "completion_tokens": 50, "total_tokens": 350}, 300, 50, True),
        # Thoughts that only the total counts.
        ({"prompt_tokens": 300, "completion_tokens": 50, "total_tokens": 1850}, 300, 1550, True),
        ({"prompt_tokens": 300, "completion_tokens": 50, "total_tokens": 0}, 300, 50, True),
        ({"prompt_tokens": 300, "completion_tokens": 50, "total_tokens": None}, 300, 50, True),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None, None, False),
        ({"prompt_tokens": "300", "completion_tokens": 50}, None, None, False),
        ({"prompt_tokens": 10**400, "completion_tokens": 1}, None, None, False),
        ({"prompt_tokens": True, "completion_tokens": 1}, None, None, False),
        ("n/a", None, None, False),
        ([1, 2], None, None, False),
        (None, None, None, False),
    ],
)
def test_usage(tmp_path: Path, usage: Any, prompt: int | None, answer: int | None, counted: bool) -> None:
    asks = provider(Running("http://localhost/v1", tmp_path), tmp_path)
    found = asks.usage("vqa", {"choices": [], "usage": usage})
    assert found.counted == counted
    if counted:
        assert (found.prompt, found.answer) == (prompt, answer)
    else:
        assert found.prompt == asks.expected("vqa").prompt


def test_an_error_in_place_of_an_answer_is_free_and_no_attempt(tmp_path: Path) -> None:
    wanted = images(tmp_path, 3)
    with running(tmp_path, Plan(script=["gateway", "gateway", "answer"])) as server:
        revealed = reveal(server, tmp_path, wanted, attempts=1)
    assert len(revealed.records) == 3
    assert [line["tokens"] for line in kept(tmp_path)] == [110] * 3


def test_a_model_whose_answers_cannot_be_used_is_not_paid_for_long(tmp_path: Path) -> None:
    wanted = images(tmp_path, 300)
    with running(tmp_path, Plan(script=["cut"])) as server:
        reasons = reveal(server, tmp_path, wanted, max_unanswered_share=0.05, concurrency=4).unanswered
        assert len(server.seen()) <= 24
    assert len(reasons) == 300
    assert reasons["00000"] == "cut off at max_tokens"
    assert reasons["00299"] == (
        "not asked about, since 20 times in a row no answer could be used (last: cut off at max_tokens)"
    )


def test_a_cap_on_money_wants_to_know_what_was_spent(tmp_path: Path) -> None:
    with running(tmp_path, Plan()) as server:
        asks = provider(server, tmp_path)
        asks.reveal(images(tmp_path, 3), files(tmp_path))
        capped = replace(asks, price_per_million_prompt_tokens=1.0, max_money=5.0)
        with pytest.raises(PreselError, match=r"max_money: 3 answers of seer in .* without prices"):
            capped.check_source(Source())
        replace(capped, model="another").check_source(Source())


def test_refusals_are_final(tmp_path: Path) -> None:
    wanted = images(tmp_path, 3)
    with running(tmp_path, Plan(script=["refusal", "answer"])) as server:
        for _ in range(2):
            revealed = reveal(server, tmp_path, wanted, attempts=5)
            assert set(revealed.unanswered.values()) == {"refused: I'm sorry, but I can't help with that."}
            assert len(revealed.unanswered) == len(server.seen()) == 3


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("empty", "blank answer"),
        ("half", "not JSON"),
        ("cut", "cut off at max_tokens"),
        ("surrogate", "half of a surrogate pair"),
    ],
)
def test_malformed_answers_are_kept_and_asked_for_so_often(tmp_path: Path, reply: str, reason: str) -> None:
    wanted = images(tmp_path, 2)
    with running(tmp_path, Plan(script=[reply, reply, "answer"])) as server:
        for _ in range(2):
            revealed = reveal(server, tmp_path, wanted, attempts=2)
            assert len(server.seen()) == len(kept(tmp_path)) == 4
            assert all(reason in why for why in revealed.unanswered.values())
        # More attempts are one more request; nothing else changes.
        assert len(reveal(server, tmp_path, wanted, attempts=3).records) == 2
        assert len(server.seen()) == 6


@pytest.mark.parametrize("reply", ["chunked", "uncounted", "answer"])
def test_tokens_are_counted_or_else_estimated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reply: str
) -> None:
    with running(tmp_path, Plan(script=[reply])) as server:
        reveal(
            server,
            tmp_path,
            images(tmp_path, 5),
            price_per_million_prompt_tokens=10.0,
            price_per_million_answer_tokens=100.0,
            concurrency=1,
        )
    tokens = [line["tokens"] for line in kept(tmp_path)]
    printed = capsys.readouterr().out
    if reply == "uncounted":
        assert all(1000 < count < 1300 for count in tokens)
        assert printed.count("without a count of tokens") == 1
    else:
        assert tokens == [110] * 5
        assert "5 images answered; 550 tokens, cost 0.01 in this run" in printed


@pytest.mark.parametrize("cap", ["tokens", "money"])
def test_the_cap_is_not_passed_by_more_than_what_is_in_flight(tmp_path: Path, cap: str) -> None:
    wanted = images(tmp_path, 60)
    # An answer takes 110 tokens where hardly any are expected, so that the cap is met from below.
    changes: dict[str, Any] = {
        "image_tokens": 0,
        "price_per_million_prompt_tokens": 1e4,
        "price_per_million_answer_tokens": 1e4,
        "concurrency": 4,
    }
    changes["parameters"] = {"max_tokens": 1}
    limit = {"tokens": {"max_tokens_total": 3000}, "money": {"max_money": 30.0}}[cap]
    with running(tmp_path, Plan(latency=0.02)) as server:
        with pytest.raises(PreselError) as told:
            reveal(server, tmp_path, wanted, **changes, **limit)
        asked = len(server.seen())
        assert max(one.at_once for one in server.seen()) == 4
        assert 3000 - 4 * 110 <= asked * 110 <= 3000 + 4 * 110
        assert len(kept(tmp_path)) == asked
        key = {"tokens": "max_tokens_total=3000: ", "money": "max_money=30: "}[cap]
        assert key in str(told.value)
        assert f"{60 - asked} of 60 images are still to be asked about; raise it" in str(told.value)
        # What earlier runs spent counts; without a cap the rest is asked about, and only that.
        with pytest.raises(PreselError, match=f"{60 - asked} of 60 images"):
            reveal(server, tmp_path, wanted, **changes, **limit)
        assert len(server.seen()) == asked
        assert len(reveal(server, tmp_path, wanted, **changes).records) == 60
        assert set(Counter(one.image for one in server.seen()).values()) == {1}


def test_a_cap_counts_what_is_in_flight_at_what_it_may_cost(tmp_path: Path) -> None:
    wanted = images(tmp_path, 30)
    with running(tmp_path, Plan()) as server:
        with pytest.raises(PreselError, match="max_tokens_total=3000"):
            reveal(server, tmp_path, wanted, image_tokens=10, max_tokens_total=3000)
        assert sum(line["tokens"] for line in kept(tmp_path)) <= 3000


def test_a_server_that_answers_nobody_ends_the_run(tmp_path: Path) -> None:
    wanted = images(tmp_path, 100)
    with running(tmp_path, Plan(script=["404"])) as server:
        reasons = reveal(server, tmp_path, wanted, max_unanswered_share=0.05, concurrency=4).unanswered
        assert len(server.seen()) < 30
        assert reasons["00000"] == "404 404 for the key None"
        assert reasons["00099"].startswith("not asked about, since 20 times in a row no answer could be used")
        assert len(reveal(server, tmp_path, wanted).unanswered) == 100


@pytest.mark.parametrize("reply", ["401", "402", "quota"])
def test_a_closed_account_ends_the_run_at_once(
    tmp_path: Path, reply: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEER_KEY", KEY)
    wanted = images(tmp_path, 100)
    with running(tmp_path, Plan(script=[reply])) as server:
        with pytest.raises(PreselError, match=r"turns requests away \(4.*the key in SEER_KEY; check") as told:
            reveal(server, tmp_path, wanted, key_variable="SEER_KEY", concurrency=4)
        assert KEY not in str(told.value)
        assert len(server.seen()) <= 8


def test_the_server_and_its_key_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path, Plan(key=KEY)) as server:
        asks = provider(server, tmp_path, key_variable="SEER_KEY")
        with pytest.raises(PreselError, match="the environment variable SEER_KEY holds no key; set it"):
            asks.check_source(Source())
        monkeypatch.setenv("SEER_KEY", "wrong-key-987654")
        with pytest.raises(PreselError, match=r"turns requests away \(401 no such key: \[key\]\)"):
            asks.check_source(Source())
        monkeypatch.setenv("SEER_KEY", f"{KEY}\n")
        with pytest.raises(
            PreselError, match="the key in SEER_KEY holds spaces or characters that no"
        ) as told:
            asks.check_source(Source())
        assert KEY not in str(told.value)
        monkeypatch.setenv("SEER_KEY", KEY)
        asks.check_source(Source())
        with pytest.raises(PreselError, match="by_task names 'ocr', which is no task of the pool"):
            replace(asks, prompts=replace(prompts(), by_task={"ocr": "detail"})).check(
                files(tmp_path), ["vqa"]
            )
    with pytest.raises(PreselError, match=r"cannot reach http://127\.0.*Connection refused"):
        asks.check_source(Source())


def test_cost_is_foretold_by_the_prompt_and_then_by_answers(tmp_path: Path) -> None:
    with running(tmp_path, Plan(script=["empty", "answer"])) as server:
        asks = provider(
            server,
            tmp_path,
            image_tokens=500,
            price_per_million_prompt_tokens=10.0,
            price_per_million_answer_tokens=20.0,
        )
        # The prompt of a conversation has some 120 tokens, the answer at most 800.
        assert 10 * 1400 < asks.estimate({"vqa": 10}).tokens < 10 * 1440
        asks.reveal(images(tmp_path, 3), files(tmp_path))
        foretold = asks.estimate({"vqa": 10, "ocr": 1})
    # Each image was asked about twice.
    assert foretold.tokens == 11 * 220
    assert foretold.money == pytest.approx(11 * 2 * (100 * 10 + 10 * 20) / 1e6)


def test_images_are_sent_as_they_are_or_shrunk(tmp_path: Path) -> None:
    wanted = images(tmp_path, 1)
    with running(tmp_path, Plan()) as server:
        reveal(server, tmp_path, wanted)
        reveal(server, tmp_path, wanted, image_side=2, image_detail="low")
        as_it_is, shrunk = server.seen()
    assert as_it_is.image == wanted[0].content[:16]
    assert shrunk.image != as_it_is.image
    shown = [one.body["messages"][-1]["content"][0]["image_url"] for one in (as_it_is, shrunk)]
    assert shown == [{}, {"detail": "low"}]


def test_an_image_that_broke_meanwhile_is_listed(tmp_path: Path) -> None:
    wanted = images(tmp_path, 3)
    (tmp_path / "images/00000.png").write_bytes(b"")
    (tmp_path / "images/00001.png").unlink()
    with running(tmp_path, Plan()) as server:
        assert reveal(server, tmp_path, wanted).unanswered == {"00000": "empty file", "00001": "missing"}


def test_the_proxy_that_the_environment_names_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, Plan()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "")
        asks = provider(proxy, tmp_path, base_url="http://seer.invalid/v1")
        asks.check_source(Source())
        assert len(asks.reveal(images(tmp_path, 2), files(tmp_path)).records) == 2


def test_a_proxy_that_is_none_is_told_of_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "socks5://me:secret-word@elsewhere:1")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(PreselError, match="environment variable http_proxy holds no address") as told:
        provider(Running("http://seer.invalid/v1", tmp_path), tmp_path).check_source(Source())
    assert "secret-word" not in str(told.value)


def test_an_address_without_an_api_is_refused_first(tmp_path: Path) -> None:
    with (
        running(tmp_path, Plan(models=False)) as server,
        pytest.raises(PreselError, match=r"/v1/models is no list of models; mend the address"),
    ):
        provider(server, tmp_path).check_source(Source())
    with pytest.raises(PreselError, match="cannot reach"):
        provider(Running("http://a..b/v1", tmp_path), tmp_path).check_source(Source())


@pytest.mark.parametrize("key", ["sk-a=b&c<d>e+f'g", 'sk-"quoted\\"-0123', KEY])
def test_a_key_that_comes_back_escaped_is_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("SEER_KEY", key)
    with running(tmp_path, Plan(script=["escaped echo"])) as server:
        reveal(server, tmp_path, images(tmp_path, 1), key_variable="SEER_KEY")
    (line, *_) = kept(tmp_path)
    assert line["raw"]["choices"][0]["message"]["content"] == "Who asks? [key]"


def test_further_parameters_are_sent_or_left_out(tmp_path: Path) -> None:
    changes = {"max_tokens": None, "temperature": None, "max_completion_tokens": 4000}
    with running(tmp_path, Plan()) as server:
        reveal(server, tmp_path, images(tmp_path, 1), parameters=changes)
        assert server.seen()[0].body.keys() == {"model", "messages", "max_completion_tokens"}


def test_what_decides_an_answer_and_what_does_not(tmp_path: Path) -> None:
    image = Wanted("1", "1.png", "vqa", "content")
    base = provider(Running("http://localhost/v1", tmp_path), tmp_path)
    same = {"base_url": "http://elsewhere/v1", "key_variable": "OTHER", "concurrency": 2, "attempts": 9}
    for change in [
        same,
        {"max_tokens_total": 5, "price_per_million_prompt_tokens": 2.0, "answers": tmp_path / "other"},
    ]:
        assert identity(replace(base, **change)) == identity(base)
        assert replace(base, **change).asked(image) == base.asked(image)
    for key, value in {"model": "m", "temperature": 0.0, "image_side": 9, "parameters": {"top_p": 1}}.items():
        assert identity(replace(base, **{key: value})) != identity(base)
        assert replace(base, **{key: value}).asked(image) != base.asked(image)


# Processes that are killed, interrupted, or run side by side.


def _reveal(url: str, folder: Path, wanted: list[Wanted], changes: dict[str, Any]) -> None:
    reveal(Running(url, folder), folder, wanted, **changes)


def started(server: Running, folder: Path, wanted: list[Wanted], **changes: Any) -> Any:
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


@pytest.mark.slow
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
            unsettled = asks.unsettled(wanted, Answers.read(tmp_path / "answers"))
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


def test_ctrl_c_keeps_what_is_on_its_way(tmp_path: Path) -> None:
    wanted = images(tmp_path, 200)
    with running(tmp_path, Plan(latency=0.1)) as server:
        process = started(server, tmp_path, wanted, concurrency=8)
        wait_for_answers(tmp_path, 10, process)
        os.kill(process.pid, signal.SIGINT)
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
    assert "waiting for another run that adds answers to" in capfd.readouterr().out


def test_the_key_is_written_nowhere(program: Program, pool_folder: Path) -> None:
    """The server repeats the key in a 401, in 400s, and in answers that are used."""
    overrides = [*on_folder(pool_folder), "strategy=random", "budget=20", "until=instructions"]
    overrides += ["instructions=openai", "instructions.model=seer", "instructions.key_variable=SEER_KEY"]
    told = ""
    with running(pool_folder, Plan(script=["400", "echo"], key=KEY)) as server:
        for key, sentence in [
            ("another-key-0123", "turns requests away (401 no such key: [key]); this run sends the key in"),
            (KEY, "20 of 20 images have no instruction, more than instructions.max_unanswered_share=0.05"),
            (KEY, "20 images answered; 2,200 tokens in this run"),
        ]:
            result = program("run", *overrides, f"instructions.base_url={server.url}", SEER_KEY=key)
            assert sentence in result.stdout + result.stderr
            told += result.stdout + result.stderr
        assert result.returncode == 0, result.stderr
        assert len(server.seen()) == 40
    # What is bought needs no server and no key.
    result = program("run", *overrides, f"instructions.base_url={server.url}")
    assert result.returncode == 0, result.stderr
    (train,) = (pool_folder / "outputs/store/instructions").glob("*/train.json")
    assert train.read_text().count("[key] does.") == 20
    written = [file for file in (pool_folder / "outputs").rglob("*") if file.is_file()]
    assert any(file.name == "answers.jsonl" for file in written)
    for secret in (KEY, "another-key-0123", KEY.replace("/", "\\/")):
        assert secret not in told
        assert not [file for file in written if secret.encode() in file.read_bytes()]


@pytest.mark.parametrize("mode", [[], ["-m"]])
@pytest.mark.parametrize(
    "override",
    [
        f"instructions.key_variable={KEY}",
        f"+instructions.api_key={KEY}",
        f"instructions.base_url=https://me:{KEY}@elsewhere/v1",
        f"instructions.parameters={{api_key: {KEY}}}",
    ],
)
def test_a_key_on_the_command_line_is_refused_and_written_nowhere(
    program: Program, tmp_path: Path, mode: list[str], override: str
) -> None:
    result = program("run", *mode, "instructions=openai", "instructions.model=seer", override)
    assert result.returncode == 2
    assert "a key may not stand on the command line" in result.stderr
    assert KEY not in result.stdout + result.stderr
    assert not (tmp_path / "outputs").exists()
