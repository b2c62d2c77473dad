"""Keys on the command line are refused before anybody writes them down."""

import re

import pytest

from presel.errors import PreselError
from presel.instructions.secrets import (
    check_destination,
    check_environment,
    has_credentials,
    is_variable,
    named_like_a_key,
    refuse_keys,
)

KEY = "abc123DEF"


@pytest.mark.parametrize(
    ("override", "setting"),
    [
        (f"+instructions.api_key={KEY}", "instructions.api_key"),
        (f"+instructions.api_key={KEY}==", "instructions.api_key"),
        (f"instructions.parameters={{api_key: {KEY}}}", "instructions.parameters"),
        (f"instructions.parameters={{api_key: '{KEY}'}}", "instructions.parameters"),
        (f"instructions.parameters={{headers: [{{X-Api-Key: {KEY}}}]}}", "instructions.parameters"),
        (f"instructions.parameters={{top_p: 1}},{{api_key: {KEY}}}", "instructions.parameters"),
        (f"instructions.parameters=choice({{token: {KEY}}})", "instructions.parameters"),
        (f"instructions.key_variable={KEY}", "instructions.key_variable"),
        (f"instructions.key_variable=OPENAI_API_KEY,{KEY}", "instructions.key_variable"),
        (f"+instructions={{key_variable: {KEY}}}", "instructions"),
        (f'instructions.base_url="http://host/v1?key={KEY}"', "instructions.base_url"),
        (f"instructions.base_url=http://host/v1#{KEY}", "instructions.base_url"),
        (f"instructions.base_url=http://host/v1,http://me:{KEY}@host/v1", "instructions.base_url"),
        (f"+hydra.job.env_set.OPENAI_API_KEY={KEY}", "hydra.job.env_set.OPENAI_API_KEY"),
        (f"+hydra.sweeper.params={{instructions.parameters.api_key: {KEY}}}", "hydra.sweeper.params"),
    ],
)
def test_an_override_that_holds_a_key_is_refused_and_not_repeated(override: str, setting: str) -> None:
    with pytest.raises(PreselError, match=rf"\A{setting}: a key may not be given on the command") as told:
        refuse_keys(["-m", "budget=5", override])
    assert KEY not in str(told.value)


@pytest.mark.parametrize(
    "override",
    [
        "instructions.key_variable=OPENAI_API_KEY",
        "instructions.key_variable=null",
        "instructions.base_url=http://host/v1",
        "instructions.parameters={max_tokens: null, prompt_cache_key: a, logit_bias: {50256: -100}}",
        "pool.image_key=jpg",
        "~instructions.parameters.api_key",
        "tau.value=range(1,3),interval(1,2)",
        "budget",
        "pool.shards={0..9}.tar",
        "--config-dir",
    ],
)
def test_other_overrides_are_left_to_hydra(override: str) -> None:
    refuse_keys([override])


OPENAI, ELSEWHERE = "https://api.openai.com/v1", "https://elsewhere.example/v1"
BOTH = (f"instructions.base_url={ELSEWHERE}", "++instructions.key_variable=OTHER")


@pytest.mark.parametrize(
    ("base_url", "variable", "overrides"),
    [
        (OPENAI, "OPENAI_API_KEY", ()),
        (f"{OPENAI}/", "OPENAI_API_KEY", ()),
        ("http://127.0.0.1:8000/v1", "OTHER", ()),
        ("http://[::1]:8000/v1", "OTHER", ()),
        ("http://localhost/v1", "OTHER", ()),
        (ELSEWHERE, None, BOTH[:1]),
        (OPENAI, None, ()),
        (ELSEWHERE, "OPENAI_API_KEY", BOTH[:1]),
        (OPENAI, "OTHER", BOTH[1:]),
        (ELSEWHERE, "OTHER", BOTH),
    ],
)
def test_a_key_goes_to_openai_to_this_machine_and_where_the_command_line_says(
    base_url: str, variable: str | None, overrides: tuple[str, ...]
) -> None:
    check_destination(base_url, variable, overrides)


@pytest.mark.parametrize(
    ("base_url", "variable", "overrides", "remedy"),
    [
        (ELSEWHERE, None, (), f"send images to {ELSEWHERE}; if you trust it, add {BOTH[0]} to the"),
        (ELSEWHERE, "OPENAI_API_KEY", (), f"add instructions.base_url={ELSEWHERE} to the"),
        (OPENAI, "OTHER", (), "add instructions.key_variable=OTHER to the"),
        (OPENAI, "OTHER", ("experiment=theirs", "instructions=openai"), "add instructions.key_variable="),
        (ELSEWHERE, "OTHER", BOTH[:1], f"add {BOTH[0]} instructions.key_variable=OTHER to the"),
        (ELSEWHERE, "OTHER", BOTH[1:], f"add {BOTH[0]} instructions.key_variable=OTHER to the"),
        ("http://api.openai.com/v1", "OPENAI_API_KEY", (), "add instructions.base_url=http://api."),
        ("https://api.openai.com.evil.example/v1", "OPENAI_API_KEY", (), "add instructions.base_url"),
        ("http://127.0.0.1.evil.example/v1", "OPENAI_API_KEY", (), "add instructions.base_url"),
    ],
)
def test_no_configuration_file_sends_a_key_elsewhere(
    base_url: str, variable: str | None, overrides: tuple[str, ...], remedy: str
) -> None:
    with pytest.raises(PreselError, match=re.escape(remedy)):
        check_destination(base_url, variable, overrides)


def test_no_configuration_file_sets_environment_variables() -> None:
    check_environment(["A"], ["+hydra.job.env_set.A=1"])
    check_environment(["A"], ["hydra.job.env_set={A: 1}"])
    with pytest.raises(PreselError, match=r"hydra\.job\.env_set\.https_proxy: a configuration file may not"):
        check_environment(["A", "https_proxy"], ["+hydra.job.env_set.A=1"])


def test_an_address_that_holds_more_than_a_server_is_refused() -> None:
    for address in ("http://me@host/v1", "http://host/v1?key=1", "http://host/v1#key"):
        assert has_credentials(address), address
    assert not has_credentials("http://host:8000/v1")


def test_a_variable_is_set_or_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("my_key", KEY)
    assert is_variable("OPENAI_API_KEY") and is_variable("_KEY2") and is_variable("my_key")
    assert not is_variable(KEY) and not is_variable("") and not is_variable("sk-1")


def test_names_of_keys_are_told_from_others() -> None:
    for name in ("key", "api_key", "apiKey", "X-Api-Key", "OPENAI_API_KEY", "access_token", "Authorization"):
        assert named_like_a_key(name), name
    for name in ("max_tokens", "prompt_cache_key", "stop_token_ids", "key_variable", "top_p", "image_key"):
        assert not named_like_a_key(name), name
