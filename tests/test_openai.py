"""Instructions from a real server on 127.0.0.1 that misbehaves in every way a server can."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from presel.data.sources import Source
from presel.errors import PreselError
from presel.instructions.client import parse_retry_after
from presel.instructions.ledger import request
from presel.instructions.provider import InstructionRequest, RequestedFile
from presel.storage.stage import identity
from tests.generation_server import Plan, Running, running
from tests.helpers import OWN_STORE, Program, on_folder
from tests.seer import files, images, kept, prompts, provider, reveal

KEY = "sk-very/secret-0123456789"


def test_an_answer_becomes_a_conversation_and_is_never_asked_for_again(tmp_path: Path) -> None:
    wanted = images(tmp_path, 20)
    with running(tmp_path, Plan()) as server:
        revealed = reveal(server, tmp_path, wanted)
        assert not revealed.unanswered
        for image, record in zip(wanted, revealed.records, strict=True):
            assert (record.id, record.images, record.task) == (image.id, (image.image,), "vqa")
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
            "garbage": "the answer is not a JSON object",
            "drop": "connection dropped",
            "gateway": "429 busy behind",
        }
        assert unanswered["00000"].startswith(told.get(reply, f"{reply} {reply} for the key None"))
        assert unanswered["00000"].endswith(", after 3 requests") == passing
        assert len(reveal(server, tmp_path, wanted).records) == 1


def test_after_slow_answers_the_run_goes_on(tmp_path: Path) -> None:
    wanted = images(tmp_path, 6)
    with running(tmp_path, Plan(script=["trickle", "slow", "answer"])) as server:
        assert len(reveal(server, tmp_path, wanted, timeout_s=0.3, concurrency=2).records) == 6


@pytest.mark.parametrize(
    ("after", "when"),
    [
        ("2", "at 20"),
        ("1e5", "at 20"),
        ("1e400", "in more than a year"),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "in more than a year"),
    ],
)
def test_a_server_that_wants_to_be_left_alone_for_long_ends_the_run(
    tmp_path: Path, after: str, when: str
) -> None:
    wanted = images(tmp_path, 3)
    with running(tmp_path, Plan(script=[f"after {after}", "answer"])) as server:
        sentence = rf"accepts no request \(429 .* instructions\.max_retry_after_s=1; run .* again {when}"
        with pytest.raises(PreselError, match=sentence):
            reveal(server, tmp_path, wanted, concurrency=1, max_retry_after_s=1)
        assert len(server.seen()) == 1


@given(some.text(max_size=30) | some.sampled_from(["-5", "nan", "Fri, 99 Foo 0 99:99:99 GMT", "1e400"]))
def test_any_retry_after_is_a_time_to_wait(header: str) -> None:
    assert parse_retry_after(header) >= 0


@pytest.mark.parametrize("reply", ["filtered", "filtered behind"])
def test_what_a_content_filter_says_is_final_and_free(tmp_path: Path, reply: str) -> None:
    wanted = images(tmp_path, 2)
    with running(tmp_path, Plan(script=[reply, "answer"])) as server:
        for _ in range(2):
            unanswered = reveal(server, tmp_path, wanted, attempts=5).unanswered
            assert unanswered == {"00000": "refused: filtered", "00001": "refused: filtered"}
            assert len(server.seen()) == 2
    assert [line["tokens"] for line in kept(tmp_path)] == [0, 0]


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


def test_the_error_names_the_setting_that_requests_malformed_answers_again(tmp_path: Path) -> None:
    wanted = images(tmp_path, 4)
    pool = files(tmp_path)
    # A file that is no longer the pool's is not requested.
    (pool.images / wanted[3].image).write_bytes(b"")
    with running(tmp_path, Plan(script=["half", "half", "answer"])) as server:
        with pytest.raises(PreselError) as told:
            asks = provider(server, tmp_path, max_unanswered_share=0.25)
            request(wanted, asks, pool, tmp_path / "result", "selection")
        assert "allows: not JSON (3), empty file (1); for example '00000': not JSON (" in str(told.value)
        assert "run the same command with instructions.attempts=3 to request another" in str(told.value)
        assert "for each of the 3 images with malformed ones" in str(told.value)
        asks = replace(asks, attempts=3)
        assert len(request(wanted, asks, pool, tmp_path / "result", "selection")) == 3
        assert len(server.seen()) == 3 * 3


def test_a_server_that_answers_nobody_ends_the_run(tmp_path: Path) -> None:
    wanted = images(tmp_path, 100)
    with running(tmp_path, Plan(script=["404"])) as server:
        reasons = reveal(server, tmp_path, wanted, max_unanswered_share=0.05, concurrency=4).unanswered
        assert len(server.seen()) < 30
        assert reasons["00000"] == "404 404 for the key None"
        assert reasons["00099"].startswith("not requested, after 20 consecutive failures (last: 404")
        assert len(reveal(server, tmp_path, wanted).unanswered) == 100


@pytest.mark.parametrize("reply", ["401", "402", "quota"])
def test_a_closed_account_ends_the_run_at_once(
    tmp_path: Path, reply: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEER_KEY", KEY)
    wanted = images(tmp_path, 100)
    with running(tmp_path, Plan(script=[reply])) as server:
        with pytest.raises(
            PreselError, match=r"rejects all requests \(4.*the key in SEER_KEY; check"
        ) as told:
            reveal(server, tmp_path, wanted, key_variable="SEER_KEY", concurrency=4)
        assert KEY not in str(told.value)
        assert len(server.seen()) <= 8


def test_the_server_and_its_key_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path, Plan(key=KEY)) as server:
        asks = provider(server, tmp_path, key_variable="SEER_KEY")
        with pytest.raises(PreselError, match="the environment variable SEER_KEY holds no key; set it"):
            asks.check_source(Source())
        monkeypatch.setenv("SEER_KEY", "wrong-key-987654")
        with pytest.raises(PreselError, match=r"rejects all requests \(401 no such key: \[key\]\)"):
            asks.check_source(Source())
        monkeypatch.setenv("SEER_KEY", f"{KEY}\n")
        with pytest.raises(
            PreselError, match="the key in SEER_KEY contains spaces or other characters that keys"
        ) as told:
            asks.check_source(Source())
        assert KEY not in str(told.value)
        monkeypatch.setenv("SEER_KEY", KEY)
        asks.check_source(Source())
        with pytest.raises(PreselError, match="by_task names 'ocr', which is not a task of the pool"):
            replace(asks, prompts=replace(prompts(), by_task={"ocr": "detail"})).check(
                files(tmp_path), ["vqa"]
            )
    with pytest.raises(PreselError, match=r"cannot reach http://127\.0.*Connection refused"):
        asks.check_source(Source())


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


def test_all_images_of_a_record_are_sent_and_each_is_paid_for(tmp_path: Path) -> None:
    one, other, third = images(tmp_path, 3)
    shown = tuple(RequestedFile(image.image, image.content) for image in (other, one))
    both = InstructionRequest("both", other.image, "vqa", "a digest of both", shown)
    with running(tmp_path, Plan()) as server:
        revealed = reveal(server, tmp_path, [both, third])
        bodies = {len(seen.body["messages"][-1]["content"]): seen for seen in server.seen()}
        assert sorted(bodies) == [2, 3]
        assert bodies[3].image == other.content[:16]
        assert bodies[3].body["messages"][-1]["content"][1]["image_url"]["url"].startswith("data:image/png")
        # An image is expected to take 1,000 tokens, as long as no answer says otherwise.
        capped = {"max_tokens_total": 4000, "model": "other"}
        with pytest.raises(PreselError, match="max_tokens_total=4000"):
            reveal(server, tmp_path, [both._replace(id="four", several=shown * 2)], **capped)
        reveal(server, tmp_path, [one], **capped)
    assert revealed.records[0].images == (other.image, one.image)
    assert revealed.records[0].conversations[0]["value"] == "<image>\n<image>\nWhich image is this?"
    (tmp_path / "images" / one.image).unlink()
    with running(tmp_path, Plan()) as server:
        assert reveal(server, tmp_path, [both._replace(id="new")]).unanswered == {
            "new": f"missing ({one.image})"
        }


def test_an_image_that_changed_meanwhile_is_listed_and_not_sent(tmp_path: Path) -> None:
    wanted = images(tmp_path, 8)
    files_ = [tmp_path / "images" / image.image for image in wanted]
    outside = files_[0].rename(tmp_path / "outside.png")
    for file in files_[1:6]:
        file.unlink()
    files_[0].symlink_to(outside)
    files_[2].write_bytes(b"")
    files_[3].mkdir()
    os.mkfifo(files_[4])
    files_[5].symlink_to(files_[6])
    with running(tmp_path, Plan()) as server:
        revealed = reveal(server, tmp_path, wanted)
        assert {one.image for one in server.seen()} == {image.content[:16] for image in wanted[6:]}
    assert revealed.unanswered == {
        "00000": "leaves the image folder",
        "00001": "missing",
        "00002": "empty file",
        "00003": "cannot be opened (Is a directory)",
        "00004": "not a regular file",
        "00005": "changed since the pool was checked",
    }


def test_the_proxy_that_the_environment_names_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, Plan()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "")
        asks = provider(proxy, tmp_path, base_url="http://seer.invalid/v1")
        asks.check_source(Source())
        assert len(asks.reveal(images(tmp_path, 2), files(tmp_path)).records) == 2


def test_this_machine_is_asked_without_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://seer.invalid")
    monkeypatch.setenv("no_proxy", "")
    with running(tmp_path, Plan()) as server:
        provider(server, tmp_path).check_source(Source())


@pytest.mark.parametrize("listed", ["seer.invalid", "seer.invalid:8000", ".invalid"])
def test_a_server_that_no_proxy_lists_is_asked_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    with running(tmp_path, Plan()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", listed)
        asks = provider(proxy, tmp_path, base_url="http://seer.invalid:8000/v1")
        with pytest.raises(PreselError, match="cannot reach"):
            asks.check_source(Source())
        assert not proxy.seen()


def test_a_proxy_that_is_none_is_reported_without_its_password(
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
        pytest.raises(PreselError, match=r"/v1/models is not a list of models; correct the address"),
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
    image = InstructionRequest("1", "1.png", "vqa", "content")
    base = provider(Running("http://localhost/v1", tmp_path), tmp_path)
    same = {"base_url": "http://elsewhere/v1", "key_variable": "OTHER", "concurrency": 2, "attempts": 9}
    for change in [
        same,
        {"max_tokens_total": 5, "price_per_million_prompt_tokens": 2.0, "answers": tmp_path / "other"},
    ]:
        assert identity(replace(base, **change)) == identity(base)
        assert replace(base, **change).request_digest(image) == base.request_digest(image)
    for key, value in {"model": "m", "temperature": 0.0, "image_side": 9, "parameters": {"top_p": 1}}.items():
        assert identity(replace(base, **{key: value})) != identity(base)
        assert replace(base, **{key: value}).request_digest(image) != base.request_digest(image)


def test_the_key_is_written_nowhere(in_process: Program, pool_folder: Path) -> None:
    """The server repeats the key in a 401, in 400s, and in answers that are used."""
    overrides = [*on_folder(pool_folder), "strategy=random", "budget=20", "until=instructions"]
    overrides += [
        "instructions=openai",
        "instructions.model=seer",
        "instructions.key_variable=SEER_KEY",
        OWN_STORE,
    ]
    told = ""
    with running(pool_folder, Plan(script=["400", "echo"], key=KEY)) as server:
        for key, sentence in [
            ("another-key-0123", "rejects all requests (401 no such key: [key]); this run sends the key in"),
            (KEY, "20 of 20 images have no instruction, more than instructions.max_unanswered_share=0.05"),
            (KEY, "20 images answered; 2,200 tokens in this run"),
        ]:
            result = in_process("run", *overrides, f"instructions.base_url={server.url}", SEER_KEY=key)
            assert sentence in result.stdout + result.stderr
            told += result.stdout + result.stderr
        assert result.returncode == 0, result.stderr
        assert len(server.seen()) == 40
    # What is bought needs no server and no key.
    in_process.succeeds("run", *overrides, f"instructions.base_url={server.url}")
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
    in_process: Program, tmp_path: Path, mode: list[str], override: str
) -> None:
    result = in_process("run", *mode, "instructions=openai", "instructions.model=seer", override)
    assert result.returncode == 2
    assert "a key may not be given on the command line" in result.stderr
    assert KEY not in result.stdout + result.stderr
    assert not (tmp_path / "outputs").exists()
