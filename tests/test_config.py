"""The configuration: every option composes and builds; every mistake gets one clear sentence."""

import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from presel.config import build, register
from presel.errors import PreselError
from presel.explain import explain
from presel.paths import config_folder
from presel.pipeline import Pipeline
from presel.store import upstream

GROUPS = [
    "pool",
    "tasks",
    "reference",
    "lvlm",
    "tune",
    "irs",
    "tau",
    "encoder",
    "cluster",
    "clip",
    "score_net",
    "neighbors",
    "allocation",
    "strategy",
    "instructions",
    "evaluation",
    "trainer",
    "logger",
    "paths",
    "executor",
]
OPENAI = ("instructions=openai", "instructions.model=any")
# What an option leaves to the user.
REQUIRED = {
    "pool=llava_json": ["pool.annotations=pool.json", "pool.images=images"],
    "pool=llava665k": ["pool.annotations=pool.json", "pool.images=images"],
    "pool=vision_flan": ["pool.annotations=pool.json", "pool.images=images"],
    "pool=image_folder": ["pool.images=images"],
    "pool=manifest": ["pool.manifest=pool.csv", "pool.images=images"],
    "pool=hf_dataset": ["pool.path=saved"],
    "pool=webdataset": ["pool.shards=shards/*.tar"],
    "lvlm=hf": ["lvlm.path=hub/model"],
    "instructions=openai": ["instructions.model=any"],
    "instructions=openai_batch": ["instructions.model=gpt"],
    "instructions=transformers": ["instructions.model=hub/model"],
    "tau=fixed": ["tau.value=0.5"],
    "evaluation=lmms_eval": ["evaluation.python=null"],
    "evaluation=llava_json": ["evaluation.annotations=eval.json", "evaluation.images=images"],
}


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield


def configured(*overrides: str) -> DictConfig:
    return compose("config", overrides=list(overrides))


def mistake(*overrides: str) -> str:
    with pytest.raises(Exception) as caught:
        build(configured(*overrides))
    return explain(caught.value)


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_every_group_builds(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESEL_OUTPUTS", "elsewhere")
    options = sorted(file.stem for file in (config_folder() / group).glob("*.yaml"))
    assert options
    for option in options:
        choice = f"{group}={option}"
        assert isinstance(build(configured(choice, *REQUIRED.get(choice, []))), Pipeline)


def test_every_field_of_a_strategy_is_a_setting() -> None:
    for file in (config_folder() / "strategy").glob("*.yaml"):
        config = configured(f"strategy={file.stem}")
        strategy: Any = build(config).strategy
        assert {field.name for field in fields(strategy)} == config.strategy.keys() - {"_target_"}


def test_every_experiment_composes_and_opens_with_its_command() -> None:
    for file in (config_folder() / "experiment").glob("*.yaml"):
        first, second = file.read_text().splitlines()[:2]
        assert first == "# @package _global_"
        assert second.startswith(f"# presel run experiment={file.stem}")
        configured(f"experiment={file.stem}")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["tua=fixed"], "there is no setting 'tua' (did you mean 'tau'?)"),
        (["seeed=1"], "there is no setting 'seeed' (did you mean 'seed'?)"),
        (["tau.valeu=3"], "there is no setting 'tau.valeu' (did you mean 'tau.value'?)"),
        (["tune.lrr=1"], "there is no setting 'tune.lrr' (did you mean 'tune.lr'?)"),
        (["+tune.lrr=1"], "there is no setting 'tune.lrr' (did you mean 'tune.lr'?)"),
        (
            ["tau=fixd"],
            "tau=fixd: there is no such option (did you mean 'fixed'?); choose one of auto, fixed",
        ),
        (["experiment=nope"], "experiment=nope: there is no such option; choose one of ablation_clusters, "),
        (["budget=abc"], "budget: Value 'abc' of type 'str' could not be converted to Float"),
        (["neighbors.k=x"], "neighbors.k: input should be a valid integer"),
        (["tune.lr=abc"], "tune.lr: input should be a valid number"),
        (["tune.lr=-1"], "tune.lr: input should be greater than 0 (it is -1)"),
        (["tune.micro_batch_size=7"], "batch_size (32) must be a multiple of micro_batch_size (7)"),
        (["irs.score=foo"], "input should be 'ratio', 'difference', 'perplexity_ratio' or 'response_loss'"),
        (["reference.share=5"], "reference.share is 5.0; it must be above 0 and below 1"),
        (["neighbors.k=0"], "neighbors.k: input should be greater than or equal to 1 (it is 0)"),
        (["tau.value=-1"], "tau.value is -1.0; it must be above 0"),
        (["seed=-1"], "seed is -1; it must be a whole number of at least 0"),
        (["budget=nan"], "budget is nan"),
        (["executor.workers=-1"], "executor.workers is -1"),
        (["lvlm.template=foo"], "unknown template 'foo'; choose one of vicuna_v1, plain"),
        (["evaluation.metric=bleu"], "unknown metric 'bleu'; choose one of exact_match, box_accuracy, cider"),
        (["pool=llava_json"], "pool.annotations has no value; set it, as in pool.annotations=…"),
        (["tau=fixed"], "tau.value has no value; set it, as in tau.value=…"),
        (
            ["experiment=realpool", "pool.annotations=a", "pool.images=b"],
            "evaluation.annotations has no value; set it, as in evaluation.annotations=…",
        ),
        (["budget"], "cannot read the override 'budget'"),
        (["pool.shards={0..9}.tar"], "'key=\"value\"' where the value has braces or commas"),
        (
            ["tasks=discovered", "tasks.n_tasks=0"],
            "tasks.n_tasks: input should be greater than or equal to 1",
        ),
        (
            ["pool=webdataset", "pool.shards=a", "pool.task_pattern='('"],
            "pool: task_pattern is not a regular expression (missing )",
        ),
        (["pool=image_folder", "pool.images=a", "pool.task=' '"], "pool.task: string should match pattern"),
        (["instructions=openai"], "instructions.model has no value"),
        ([*OPENAI, "instructions.base_url=localhost"], "instructions: base_url must be an address such as"),
        ([*OPENAI, "instructions.base_url=http://me:word@host/v1"], "a key belongs in the environment"),
        ([*OPENAI, "instructions.key_variable=sk-secret"], "name of an environment variable, never the key"),
        ([*OPENAI, "instructions.max_money=5"], "max_money=5 without prices would never be reached"),
        ([*OPENAI, "instructions.parameters={stream: true}"], "parameters may not hold 'stream'"),
        (
            [*OPENAI, "instructions.prompts.by_task={ocr: letters}"],
            "there is no prompt 'letters'; choose one of conversation, detail, reasoning",
        ),
    ],
)
def test_a_mistake_is_told_in_one_sentence(overrides: list[str], sentence: str) -> None:
    told = mistake(*overrides)
    assert sentence in told
    assert "\n" not in told
    assert "secret" not in told and "word@" not in told


def test_a_run_that_ends_early_needs_no_benchmarks() -> None:
    pool = ["pool.annotations=pool.json", "pool.images=images"]
    pipeline = build(configured("experiment=realpool", *pool, "until=selection"))
    assert pipeline.benchmark_source is None
    with pytest.raises(PreselError, match="no benchmarks to evaluate on"):
        _ = pipeline.evaluation


@pytest.mark.parametrize(
    ("overrides", "clusters"),
    [
        (["pool=llava665k"], 10_000),
        (["pool=vision_flan"], 2_500),
        (["pool=vision_flan", "strategy.n_clusters=7"], 7),
        (["pool=llava_json"], None),
    ],
)
def test_a_published_pool_has_the_published_number_of_clusters(
    overrides: list[str], clusters: int | None
) -> None:
    assert configured("strategy=coincide", *overrides).strategy.n_clusters == clusters


def test_a_published_pool_leaves_other_strategies_alone() -> None:
    assert configured("pool=vision_flan").strategy == configured().strategy


def keys(*overrides: str) -> dict[str, str]:
    """The key of every step of a run, by its label."""
    pipeline = build(configured("strategy=self_filter", *overrides))
    return {stage.label: stage.key for stage in upstream(pipeline.evaluation)}


def test_keys_hold_the_kind_of_device_and_the_precision_but_no_number_of_processes() -> None:
    cpu = keys("trainer=cpu")
    assert cpu == keys("trainer=cpu", "trainer.precision=32-true")
    assert cpu == keys("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    assert cpu == keys() or torch.cuda.is_available()

    gpu = keys("trainer=gpu", "trainer.precision=32-true")
    without_a_model = {label for label in cpu if cpu[label] == gpu[label]}
    assert without_a_model == {
        *("scenes (pool)", "pool", "reference", "scenes (benchmarks)", "benchmarks"),
        *("instructions (reference)", "instructions (whole pool)"),
    }
    # The precision is that of training.
    bf16 = keys("trainer=gpu", "trainer.precision=bf16-mixed")
    assert {label for label in gpu if gpu[label] == bf16[label]} == without_a_model | {"clip_features"}


def test_conf_is_found_beside_the_package() -> None:
    assert (config_folder() / "config.yaml").exists()
    assert config_folder().name == "conf"
    assert Path(config_folder()).is_absolute()


def test_wandb_that_is_not_installed_is_told_of_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    pipeline = build(configured("logger=wandb"))
    with pytest.raises(PreselError, match=r'pip install "presel\[wandb\]"'):
        pipeline.model.check()
