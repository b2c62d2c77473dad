"""Keys on the command line are refused before anybody writes them down."""

import re
from pathlib import Path

import pytest

import presel
from presel.errors import PreselError
from presel.instructions.secrets import (
    check_destination,
    check_environment,
    has_credentials,
    is_variable,
    named_like_a_key,
    refuse_keys,
)
from tests.helpers import TINY, Program

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
        (f'instructions.parameters={{"api_key": "{KEY}"}}', "instructions.parameters"),
        (f'instructions.parameters="{{\\"api_key\\": \\"{KEY}\\"}}"', "instructions.parameters"),
        (f"instructions.parameters='{{extra: [{{api_key: {KEY}}}]}}'", "instructions.parameters"),
        (f"instructions.key_variable={KEY}", "instructions.key_variable"),
        (f"instructions.key_variable=OPENAI_API_KEY,{KEY}", "instructions.key_variable"),
        (f"+instructions={{key_variable: {KEY}}}", "instructions"),
        (f'instructions.base_url="http://host/v1?key={KEY}"', "instructions.base_url"),
        (f"instructions.base_url=http://host/v1#{KEY}", "instructions.base_url"),
        (f"instructions.base_url=http://host/v1,http://me:{KEY}@host/v1", "instructions.base_url"),
        (f"+hydra.job.env_set.OPENAI_API_KEY={KEY}", "hydra.job.env_set.OPENAI_API_KEY"),
        (f"instructions.model=sk-proj-{KEY}{KEY}{KEY}", "instructions.model"),
        (f"instructions.prompts.by_task={{vqa: {{api_key: {KEY}}}}}", "instructions.prompts.by_task"),
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
        'instructions.parameters={"max_tokens": 3, "top_p": 1}',
        "instructions.prompts.kinds.detail.request='Token: {question}'",
        "pool.image_key=jpg",
        "instructions.prompts.by_task={key: detail, token: vqa}",
        "+instructions.prompts.by_task.key=detail",
        "pool.task_patterns='{^key/: a, token: b}'",
        "instructions.model=sk-small",
        "pool.images=hf_photos_of_kitchens_2024",
        "hydra.run.dir=sk-experiment-with-many-seeds-0",
        "~instructions.parameters.api_key",
        "tau.value=range(1,3),interval(1,2)",
        "budget",
        "pool.shards={0..9}.tar",
        "--config-dir",
    ],
)
def test_other_overrides_are_left_to_hydra(override: str) -> None:
    refuse_keys([override])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (f"parameters: {{api_key: {KEY}}}", "instructions.parameters"),
        (f"parameters: {{extra_body: {{api_key: {KEY}}}}}", "instructions.parameters"),
        (f"key_variable: {KEY}", "instructions.key_variable"),
        (f"base_url: http://me:{KEY}@host/v1", "instructions.base_url"),
    ],
)
@pytest.mark.parametrize("sweep", [False, True])
def test_a_key_in_a_file_is_refused_and_left_nowhere(
    in_process: Program, tmp_path: Path, settings: str, named: str, sweep: bool
) -> None:
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /instructions: openai\n"
        f"instructions:\n  model: any\n  {settings}\n"
    )
    seeds = ["-m", "seed=0,1"] if sweep else []
    told = in_process.refuses("run", *seeds, "--config-dir=conf", "experiment=mine", *TINY)
    assert f"{named}: a configuration file may not hold a key" in told
    assert KEY not in told
    left = [file for file in (tmp_path / "outputs").rglob("*") if file.is_file()]
    assert not [file for file in left if KEY in file.read_text(errors="replace")]
    with pytest.raises(PreselError, match=f"{named}: a configuration file may not hold a key"):
        presel.compose([f"hydra.searchpath=[file://{tmp_path}/conf]", "experiment=mine"])


def test_a_variable_named_in_a_file_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /instructions: openai\n"
        "instructions:\n  model: any\n  key_variable: MY_KEY\n  parameters: {max_tokens: 9}\n"
    )
    presel.compose([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])


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
