"""The configuration: every option composes, builds and is explained, and what of it is in keys."""

import ast
import copy
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from presel.commands.execution import benchmark_images_in_pool, made_for_digits
from presel.commands.run import run_help
from presel.data.image_folder import ImageFolder
from presel.errors import PreselError
from presel.instructions.label_studio import LabelStudio
from presel.pipeline import Pipeline
from presel.settings.options import SCHEMA, config_folder, fields_of, options
from presel.settings.schema import build
from presel.storage.stage import upstream
from presel.storage.store import Store
from presel.strategies.base import RESULTS
from presel.strategies.random import Random
from tests.composing import configured
from tests.helpers import environment
from tests.pictures import picture

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
    "validation",
    "trainer",
    "logger",
    "paths",
    "executor",
]
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
    "encoder=precomputed": ["encoder.file=features.parquet"],
    "instructions=openai": ["instructions.model=any"],
    "instructions=openai_batch": ["instructions.model=gpt"],
    "instructions=transformers": ["instructions.model=hub/model"],
    "tau=fixed": ["tau.value=0.5"],
    "evaluation=lmms_eval": ["evaluation.python=null"],
    "evaluation=llava_json": [
        "evaluation.annotations=eval.json",
        "evaluation.images=images",
    ],
    "validation=llava_json": [
        "validation.annotations=validation.json",
        "validation.images=images",
    ],
}


# Fields that are no settings, and a default that no option has.
UNSET_FIELDS = {"Llava665k": {"task_field", "task_patterns"}}  # its tasks come from folder and wording
NO_DEFAULTS = {("Hardware", "node_command")}  # Slurm's, which interpolates the number of nodes


def components(settings: Any) -> Iterator[tuple[type, dict[str, Any]]]:
    """The class and the settings of every component in a configuration, but for those of other groups."""
    if isinstance(settings, DictConfig):
        if "_target_" in settings:
            yield get_class(settings["_target_"]), OmegaConf.to_container(settings, resolve=True)  # type: ignore[misc]
        for name in settings:
            if not OmegaConf.is_interpolation(settings, name):
                yield from components(settings[name])


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_builds_and_its_keys_and_defaults_are_those_of_the_class(
    group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRESEL_OUTPUTS", "elsewhere")
    names = sorted(file.stem for file in (config_folder() / group).glob("*.yaml"))
    assert names
    options: dict[type, list[dict[str, Any]]] = {}
    for name in names:
        config = configured(f"{group}={name}", *REQUIRED.get(f"{group}={name}", []))
        assert isinstance(build(config), Pipeline)
        for kind, settings in components(config[group]):
            options.setdefault(kind, []).append(settings)
    for kind, chosen in options.items():
        fields = {field.name: field for field in dataclasses.fields(kind)}
        for settings in chosen:
            assert settings.keys() - {"_target_"} == fields.keys() - UNSET_FIELDS.get(kind.__name__, set())
        for name in chosen[0].keys() - {"_target_"}:
            field = fields[name]
            default = field.default if field.default_factory is MISSING else field.default_factory()
            # With one option, the two agree; with several, the class's default is one of theirs.
            if default is not MISSING and (kind.__name__, name) not in NO_DEFAULTS:
                assert default in [settings[name] for settings in chosen], f"{kind.__name__}.{name}"


def test_every_experiment_composes_and_opens_with_its_command() -> None:
    for file in (config_folder() / "experiment").glob("*.yaml"):
        first, second = file.read_text().splitlines()[:2]
        assert first == "# @package _global_"
        assert second.startswith(f"# presel run experiment={file.stem}")
        configured(f"experiment={file.stem}")


def test_help_explains_every_option_and_every_setting() -> None:
    overview = run_help(["--help"])
    for group in [*GROUPS, "experiment"]:
        explained = run_help(["--help", group])
        for name, option in options(group).items():
            assert option.meaning[-1] not in ":;,"
            assert f" {name} " in overview and f"{group}={name}" in explained
            if group != "experiment":
                meanings, types = fields_of(option.target), get_type_hints(resolve_name(option.target))
                for key in option.settings.keys() - {"_target_"}:
                    assert meanings[key], f"{group}={name}: {key}"
                    for kind in (types[key], *get_args(types[key])):
                        values = get_args(kind) if get_origin(kind) is Literal else ()
                        listed = all(value in meanings[key] for value in values)
                        assert listed or option.reference(key), f"{group}.{key}"
                    assert f"{group}.{key}" in explained
    assert all(f"  {key} " in overview for key in ("seed", "budget", "until"))
    assert "image resolution" not in overview
    with pytest.raises(PreselError, match=r"no group 'strategi' \(did you mean 'strategy'\?\)"):
        run_help(["--help", "strategi"])


def test_help_needs_neither_torch_nor_hydra() -> None:
    program = (
        "import sys, presel.commands.run as help; help.run_help([]);"
        "sys.exit(bool({'torch', 'hydra', 'omegaconf', 'pandas', 'pydantic'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment(PYTHONPATH=str(Path.cwd())))


def test_help_ends_quietly_where_its_reader_has_ended() -> None:
    command = [sys.executable, "-m", "presel", "run", "--help"]
    variables = environment(PYTHONPATH=str(Path.cwd()))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_every_setting_that_a_message_names_exists() -> None:
    groups = fields_of(f"{SCHEMA}.Config")
    pattern = re.compile(rf"(?<![\w./]){'(' + '|'.join(groups) + ')'}\.([a-z_]+)(?![\w(/])")
    valid = {f"{group}.{key}" for group in GROUPS for one in options(group).values() for key in one.settings}
    files = {"json", "jsonl", "csv", "tsv", "parquet", "yaml", "npy", "png"}
    for file in sorted((Path(__file__).parents[1] / "presel").rglob("*.py")):
        tree = ast.parse(file.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                for group, key in pattern.findall(node.value):
                    assert key in files or f"{group}.{key}" in valid, f"{file}: {group}.{key}"


def test_a_path_in_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("PRESEL_OUTPUTS", "~/out")
    own = ("pool=image_folder", 'pool.images="~/büro"', "lvlm=hf", 'lvlm.path="~"')
    pipeline = build(configured(*own, "paths=env", "instructions=label_studio"))
    assert isinstance(pipeline.source, ImageFolder)
    assert pipeline.source.images == Path("/home/someone/büro")
    assert pipeline.lvlm.path == "/home/someone"
    assert isinstance(pipeline.provider, LabelStudio)
    assert pipeline.provider.answers == Path("/home/someone/out/answers")


def test_a_config_makes_components_of_its_group_alone() -> None:
    config = configured("instructions=openai", "instructions.model=any")
    no_strategy = "which is no such class; name a subclass of presel.strategies.base.Strategy"
    told = {
        "strategy._target_: pandas.read_pickle": no_strategy,
        "strategy._target_: presel.storage.files.write_json": no_strategy,
        "strategy._target_: os.system": no_strategy,
        "strategy._target_: presel.data.sources.LlavaJson": no_strategy,
        "strategy._target_: nowhere.Mine": 'cannot be imported ("ModuleNotFoundError: No module named',
        "strategy._target_: null": "strategy has no _target_; name a subclass of presel.strategies",
        "strategy._partial_: true": "strategy makes no presel.strategies.base.Strategy; leave out keys",
        "pool.size._target_: os.system": "pool.size holds _target_, which only pool, tasks",
        "instructions.prompts._target_: os.system": "name a subclass of presel.instructions.prompts.Prompts",
        "instructions.parameters: {a: [{_target_: os.system}]}": "instructions.parameters.a.0 holds _target_",
    }
    for change, sentence in told.items():
        key, _, value = change.partition(": ")
        changed = copy.deepcopy(config)
        OmegaConf.update(changed, key, yaml.safe_load(value), force_add=True)
        with pytest.raises(PreselError) as caught:
            build(changed)
        assert sentence in str(caught.value)


@dataclass(frozen=True)
class Mistaken(Random):
    needs: ClassVar[tuple[str, ...]] = ("featurs",)


def test_a_need_that_there_is_not_is_reported_before_any_work() -> None:
    pipeline = dataclasses.replace(build(configured()), strategy=Mistaken())
    with pytest.raises(
        PreselError,
        match=r"Mistaken\.needs names 'featurs'; it may hold features, clusters, reference, relevance",
    ):
        _ = pipeline.evaluation
    # Whatever a strategy can read is a step that it can need.
    assert all(getattr(Pipeline, name) for name in RESULTS)


def test_what_is_made_for_digits_is_named_where_the_pool_is_not(tmp_path: Path) -> None:
    picture(tmp_path / "cats/1.png")
    own = ("pool=image_folder", f"pool.images={tmp_path}")
    pipeline = build(configured(*own))
    assert made_for_digits(pipeline, pipeline.evaluation) == ["encoder", "lvlm", "evaluation"]
    pipeline = build(configured(*own, "until=selection", "strategy=random"))
    assert made_for_digits(pipeline, pipeline.selection) == []
    pipeline = build(configured())
    assert made_for_digits(pipeline, pipeline.evaluation) == []


def test_benchmark_images_that_the_pool_shows_are_counted(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"{number}.png", number)
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    asked = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "this"}]
    for file, images in (("pool", ["0.png", "1.png"]), ("eval", ["0.png", "copy.png", "2.png", "3.png"])):
        records = [{"id": image, "image": image, "task": "vqa", "conversations": asked} for image in images]
        (tmp_path / f"{file}.json").write_text(json.dumps(records))
    pool = ("pool=llava_json", f"pool.annotations={tmp_path}/pool.json", f"pool.images={tmp_path}")
    benchmarks = ("evaluation=llava_json", f"evaluation.annotations={tmp_path}/eval.json")
    pipeline, store = build(configured(*pool, *benchmarks)), Store(tmp_path / "store")
    assert benchmark_images_in_pool(pipeline, store, pipeline.selection) == 0
    store.ensure(pipeline.benchmarks)
    store.ensure(pipeline.images)
    assert benchmark_images_in_pool(pipeline, store, pipeline.evaluation) == 2


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
    bf16 = keys("trainer=gpu", "trainer.precision=bf16-mixed")
    assert {label for label in gpu if gpu[label] == bf16[label]} == without_a_model | {"clip_features"}


def test_answers_of_the_untuned_model_depend_on_the_precision_only_where_its_weights_are_float32() -> None:
    def key(*overrides: str) -> str:
        return build(configured("trainer=cpu", *overrides)).base_evaluation.key

    assert key("trainer.precision=bf16-mixed") != key("trainer.precision=32-true")
    half = "lvlm.dtype=bfloat16"
    assert key("trainer.precision=bf16-mixed", half) == key("trainer.precision=bf16-true", half)


def test_weights_in_half_precision_are_not_trained_in_float32(store: Store) -> None:
    pipeline = build(configured("trainer=cpu", "trainer.precision=32-true", "lvlm.dtype=bfloat16"))
    with pytest.raises(PreselError, match=r"^trainer\.precision=32-true: lvlm\.dtype=bfloat16 .*=auto, or"):
        pipeline.model.check(store)


@pytest.mark.parametrize("role", ["features", "clip_scores", "multimodal_features", "scores", "evaluation"])
@pytest.mark.parametrize("devices", [10_000, "auto"])
def test_gpus_that_are_not_there_are_refused_before_any_work(
    role: str, devices: int | str, store: Store
) -> None:
    if devices == "auto" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    pipeline = build(configured("trainer=ddp", "trainer.accelerator=gpu", f"trainer.devices={devices}"))
    with pytest.raises(PreselError, match=rf"^trainer\.devices={devices}: this machine has \d+ GPUs; set "):
        getattr(pipeline, role).check(store)


def test_conf_is_found_beside_the_package() -> None:
    assert (config_folder() / "config.yaml").exists()
    assert config_folder().name == "conf"
    assert Path(config_folder()).is_absolute()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["logger.kind=os.system"], "TypeError: it is no subclass of pytorch_lightning.loggers.Logger"),
        (["logger.kind=CSVLogger"], "ValueError: Empty module name"),
        (["+logger.arguments.nmae=x"], "unexpected keyword argument 'nmae'"),
        (["logger.kind=nowhere.Logger"], "ModuleNotFoundError: No module named 'nowhere'"),
        pytest.param(
            ["logger=mlflow"],
            "pip install -U 'mlflow",
            marks=pytest.mark.skipif(find_spec("mlflow") is not None, reason="MLflow is installed"),
        ),
    ],
)
def test_a_logger_that_cannot_be_made_is_reported_before_any_work(
    overrides: list[str], reason: str, store: Store
) -> None:
    with pytest.raises(PreselError, match=r"\Alogger\.kind=.+; install its package") as caught:
        build(configured(*overrides)).model.check(store)
    assert reason in str(caught.value)


def test_any_logger_of_lightning_works_without_code_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    logger = build(configured("logger=wandb", "logger.arguments.project=mine")).runtime.logger
    logger.check()
    assert not capsys.readouterr().out
    made: Any = logger.create(tmp_path, "model (selection) 123")
    assert (made.name, made.save_dir, made._offline) == ("mine", str(tmp_path), True)
    assert made._wandb_init["name"] == "model (selection) 123"
    assert "offline: WANDB_API_KEY is not set" in capsys.readouterr().out
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    made = logger.create(tmp_path, "again")
    assert not made._offline
    assert not capsys.readouterr().out
