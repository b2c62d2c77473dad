"""What requests cost, whatever becomes of them, and the cap on it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from presel.data.sources import Source
from presel.errors import PreselError
from presel.instructions.provider import RequestedFile
from presel.report.spending import requests
from presel.runs import load_run
from tests.generation_server import Plan, Running, running
from tests.helpers import OWN_STORE, Program, on_folder
from tests.seer import files, images, kept, provider, reveal


def test_an_answer_that_is_no_json_is_kept_and_counts_as_spent(tmp_path: Path) -> None:
    with running(tmp_path, Plan(script=["garbage", "answer"])) as server:
        reveal(server, tmp_path, images(tmp_path, 1))
    garbage, answer = kept(tmp_path)
    assert garbage["raw"] == "<html>\ufffd{{{"
    assert garbage["tokens"] > 1000
    assert answer["tokens"] == 110


@pytest.mark.parametrize("reply", ["huge", "deep"])
def test_of_what_is_no_answer_the_beginning_is_kept(tmp_path: Path, reply: str) -> None:
    with running(tmp_path, Plan(script=[reply, "answer"])) as server:
        assert reveal(server, tmp_path, images(tmp_path, 1)).records
    lost, _ = kept(tmp_path)
    assert len(lost["raw"]) == 1 << 16
    assert lost["tokens"] > 1000


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1.0, 1e400, 1e10])
@pytest.mark.parametrize(
    "setting", ["max_money", "price_per_million_prompt_tokens", "price_per_million_answer_tokens"]
)
def test_amounts_are_finite_and_not_negative(tmp_path: Path, setting: str, amount: float) -> None:
    prices = {"price_per_million_prompt_tokens": 1.0}
    with pytest.raises(ValidationError, match=setting):
        provider(Running("http://localhost/v1", tmp_path), tmp_path, **(prices | {setting: amount}))


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


@pytest.mark.parametrize("reply", ["garbage", "uncounted", "slow"])
def test_an_estimate_counts_every_image_of_a_record(tmp_path: Path, reply: str) -> None:
    one = images(tmp_path, 4)
    record = one[0]._replace(several=tuple(RequestedFile(image.image, image.content) for image in one))
    with running(tmp_path, Plan(script=[reply])) as server:
        asks = provider(server, tmp_path, timeout_s=0.3 if reply == "slow" else 30.0, max_retries=0)
        asks.reveal([record], files(tmp_path))
    (line,) = kept(tmp_path)
    assert line["tokens"] > 4 * asks.image_tokens


@pytest.mark.parametrize("reply", ["garbage", "broken", "slow", "drop"])
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
def test_token_usage_is_parsed(
    tmp_path: Path, usage: Any, prompt: int | None, answer: int | None, counted: bool
) -> None:
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
    assert reasons["00299"] == "not requested, after 20 consecutive failures (last: cut off at max_tokens)"


def test_a_cap_on_money_wants_to_know_what_was_spent(tmp_path: Path) -> None:
    with running(tmp_path, Plan()) as server:
        asks = provider(server, tmp_path)
        asks.reveal(images(tmp_path, 3), files(tmp_path))
        capped = replace(asks, price_per_million_prompt_tokens=1.0, max_money=5.0)
        with pytest.raises(PreselError, match=r"max_money: 3 answers of seer in .* without prices"):
            capped.check_source(Source())
        replace(capped, model="another").check_source(Source())


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
        assert printed.count("without a token count") == 1
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
        assert f"{60 - asked} of 60 images are still to be requested; raise the limit" in str(told.value)
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


def test_cost_is_estimated_from_the_prompt_then_from_answers(tmp_path: Path) -> None:
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


def test_the_page_lists_what_each_purpose_cost(in_process: Program, pool_folder: Path) -> None:
    settings = ["budget=20", "until=instructions", "hydra.run.dir=outputs/runs/priced", OWN_STORE]
    settings += ["instructions=openai", "instructions.model=seer", "instructions.key_variable=null"]
    settings += ["instructions.price_per_million_prompt_tokens=10"]
    with running(pool_folder, Plan(script=["empty", "answer"])) as server:
        in_process.succeeds("run", *on_folder(pool_folder), *settings, f"instructions.base_url={server.url}")
    table = requests(load_run(pool_folder / "outputs/runs/priced"))
    bought = table.set_index("requested for")[["instructions", "tokens", "money"]].T.to_dict("list")
    # Each image is asked about twice: 100 tokens of a prompt and 10 of an answer a time.
    assert bought == {
        "reference": ["3", "660", "0.006"],
        "selection": ["17", "3,740", "0.034"],
        "all": ["20", "4,400", "0.04"],
    }
