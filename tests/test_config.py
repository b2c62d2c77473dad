"""The configuration: every option composes and builds; every mistake gets one clear sentence."""

import ast
import copy
import dataclasses
import json
import re
import shlex
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
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from hydra.utils import get_class
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import presel
from presel.commands.execution import benchmark_images_in_pool, made_for_digits
from presel.commands.run import run_help
from presel.data.image_folder import ImageFolder
from presel.errors import PreselError
from presel.instructions.label_studio import LabelStudio
from presel.pipeline import Pipeline
from presel.settings.errors import explain
from presel.settings.options import SCHEMA, config_folder, fields_of, options
from presel.settings.overrides import check_overrides, quoted, spread_over_jobs
from presel.settings.schema import build, register
from presel.settings.usage import drop_foreign, unused_groups, without_effect
from presel.storage.stage import upstream
from presel.storage.store import Store
from presel.strategies.base import RESULTS
from presel.strategies.random import Random
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
# Groups that PreSel reads and rivals do not.
PRESEL_ONLY = {"irs", "tau", "neighbors", "allocation", "reference"}
# Groups that some rivals read and PreSel does not.
RIVALS_ONLY = {"clip", "score_net", "validation"}
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
    "evaluation=llava_json": [
        "evaluation.annotations=eval.json",
        "evaluation.images=images",
    ],
    "validation=llava_json": [
        "validation.annotations=validation.json",
        "validation.images=images",
    ],
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
    return explain(caught.value, overrides)


# Fields that are no settings, and a default that no option has.
NO_SETTINGS = {"Llava665k": {"task_field", "task_patterns"}}  # its tasks come from folder and wording
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
            assert settings.keys() - {"_target_"} == fields.keys() - NO_SETTINGS.get(kind.__name__, set())
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


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["tua=fixed"], "there is no setting 'tua' (did you mean 'tau'?)"),
        (["seeed=1"], "there is no setting 'seeed' (did you mean 'seed'?)"),
        (["tau.valeu=3"], "there is no setting 'tau.valeu' (did you mean 'tau.value'?)"),
        (
            ["pool=image_folder", "pool.imges=x"],
            "there is no setting 'pool.imges' (did you mean 'pool.images'?)",
        ),
        (["tune.lrr=1"], "there is no setting 'tune.lrr' (did you mean 'tune.lr'?)"),
        (["+tune.lrr=1"], "there is no setting 'tune.lrr' (did you mean 'tune.lr'?)"),
        (
            ["tau=fixd"],
            "tau=fixd: there is no such option (did you mean 'fixed'?); choose one of auto, fixed",
        ),
        (["experiment=nope"], "experiment=nope: there is no such option; choose one of ablation_clusters, "),
        (
            ["budget=abc"],
            "budget: Value 'abc' of type 'str' could not be converted to Float; it must be a share of",
        ),
        (
            ["budget=0"],
            "budget is 0.0; it must be a share of the pool, above 0 and up to 1 (0.15), or a whole",
        ),
        (["budget=-3"], "budget is -3.0; it must be a share of the pool"),
        (["budget=1.5"], "budget is 1.5; it must be a share of the pool"),
        (
            ["until=pool"],
            "until is pool; it must be one of selection, instructions, model, merged, evaluation",
        ),
        (
            ["executor.batch_tokens=0"],
            "executor.batch_tokens: input should be greater than or equal to 1 (it is 0)",
        ),
        (["allocation.tasks=foo"], "allocation.tasks: input should be 'exact', 'paper', 'released_llava' or"),
        (["cluster.seed=-1"], "cluster.seed: input should be greater than or equal to 0 (it is -1)"),
        (["pool.seed=-1"], "pool.seed: input should be greater than or equal to 0 (it is -1)"),
        (["+logger.arguments.api_key=secret"], "logger.arguments.api_key may not hold a key or credentials"),
        (
            ["+logger.arguments.uri=http://me:word@host"],
            "logger.arguments.uri may not hold a key or credentials",
        ),
        (["+foo=1"], "there is no setting 'foo' (did you mean 'pool'?); `presel run --help` lists them all"),
        (["+bugdet=1"], "there is no setting 'bugdet' (did you mean 'budget'?); `presel run --help` lists"),
        (["+irs.batch_tokens=1"], "there is no setting 'irs.batch_tokens'"),
        (["evaluation=llava_json", "evaluation.annotations=a"], "evaluation.images has no value; set it"),
        (["neighbors.k=x"], "neighbors.k: input should be a valid integer"),
        (["tune.lr=abc"], "tune.lr: input should be a valid number"),
        (["tune.lr=-1"], "tune.lr: input should be greater than 0 (it is -1)"),
        (["tune.micro_batch_size=7"], "batch_size (32) must be a multiple of micro_batch_size (7)"),
        (
            ["irs.score=foo"],
            "irs.score: input should be 'ratio', 'difference', 'perplexity_ratio' or 'response_loss'",
        ),
        (["reference.share=5"], "reference.share is 5.0; it must be above 0 and below 1"),
        (["neighbors.k=0"], "neighbors.k: input should be greater than or equal to 1 (it is 0)"),
        (["tau.value=-1"], "tau.value is -1.0; it must be above 0"),
        (["seed=-1"], "seed is -1; it must be a whole number from 0 to 4294967295"),
        (["seed=4294967296"], "seed is 4294967296; it must be a whole number from 0 to"),
        (["budget=nan"], "budget is nan"),
        (["executor.workers=-1"], "executor.workers: input should be greater than or equal to 0 (it is -1)"),
        (["executor.workers=x"], "executor.workers: input should be a valid integer"),
        (["lvlm.template=foo"], "unknown template 'foo'; choose one of vicuna_v1, plain"),
        (
            ["evaluation.metric=bleu"],
            "unknown metric 'bleu'; choose one of exact_match, number_match, relaxed_",
        ),
        (
            ["pool=image_folder", "pool.images=a", "pool.limit=0"],
            "pool.limit: input should be greater than or",
        ),
        (["pool.limit=9"], "there is no setting 'pool.limit'"),
        (["pool=llava_json"], "pool.annotations has no value; set it, as in pool.annotations=…"),
        (["tau=fixed"], "tau.value has no value; set it, as in tau.value=…"),
        (
            ["experiment=realpool", "pool.annotations=a", "pool.images=b"],
            "evaluation.annotations has no value; set it, as in evaluation.annotations=…",
        ),
        (["budget"], "cannot read the override 'budget'"),
        (["pool.shards={0..9}.tar"], """write 'pool.shards="{0..9}.tar"'"""),
        (["pool=image_folder", "pool.images=a,b"], """or quote a name: write 'pool.images="a,b"'"""),
        (
            ["pool=image_folder", "pool.images=1_000"],
            """pool.images is a number, not text; if it is a name, quote it: write 'pool.images="1_000"'""",
        ),
        (
            ["pool=image_folder", "pool.images=null"],
            """pool.images is null, not text; if it is a name, quote it: write 'pool.images="null"'""",
        ),
        (["pool=image_folder", "pool.images=a", "pool.task=3.0"], """quote it: write 'pool.task="3.0"'"""),
        (
            ["pool=image_folder", "pool.images=${nowhere}"],
            "pool.images: Interpolation key 'nowhere' not found; ",
        ),
        (
            ["pool=image_folder", "pool.images=${seed}"],
            "pool.images is a number, not text; names of files may not have ${ in them",
        ),
        (
            ["tasks=discovered", "tasks.n_tasks=0"],
            "tasks.n_tasks: input should be greater than or equal to 1",
        ),
        (
            ["pool=webdataset", "pool.shards=a", "pool.task_pattern='('"],
            "pool: task_pattern is not a regular expression (missing )",
        ),
        (["pool=image_folder", "pool.images=a", "pool.task=' '"], "pool.task: string should match pattern"),
        (
            ["trainer.precision=fp16"],
            "trainer.precision: input should be '32-true', 'bf16-mixed' or 'bf16-true' or 'auto'",
        ),
        (
            ["trainer.devices=many"],
            "trainer.devices: input should be a valid integer or 'auto' (it is 'many')",
        ),
        (["trainer.devices=0"], "trainer.devices: input should be greater than 0 or 'auto' (it is 0)"),
        (["lvlm.projector={a: 1}"], "lvlm.projector: input should be a valid string or a valid list"),
        (["instructions=openai"], "instructions.model has no value"),
        ([*OPENAI, "instructions.base_url=localhost"], "instructions: base_url must be an address such as"),
        (
            [*OPENAI, "instructions.base_url=http://me:word@host/v1"],
            "put the key into the environment variable",
        ),
        ([*OPENAI, "instructions.key_variable=sk-secret"], "name of an environment variable, never the key"),
        ([*OPENAI, "instructions.max_money=5"], "max_money=5 without prices would never be reached"),
        ([*OPENAI, "instructions.parameters={stream: true}"], "parameters may not contain 'stream'"),
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


def test_several_values_are_swept_over_only_where_that_is_possible() -> None:
    with pytest.raises(HydraException) as caught:
        configured("seed=0,1")
    assert "values; add -m to sweep over them, bracket a list" in explain(caught.value, may_sweep=True)
    with pytest.raises(PreselError, match="stands for several values; give one, bracket a list"):
        presel.compose(["seed=0,1"])


UNREADABLE = [
    "~/photos",
    "büro",
    "日本",
    "a=b",
    "photos (1)",
    "it's",
    "a&b",
    "!x",
    "a;b",
    "a#b",
    "<a>",
    "a^b",
    "`a`",
]
UNREADABLE += ["{a}", "{0..9}.tar", "a[1]", "(x)", '"x', 'a"b', "a'b\"c", 'a\\"b', "é\\", "photos(1), 2"]


def shown_override(told: str) -> str:
    """The override that an error tells to write, as a shell hands it on."""
    (override,) = shlex.split(told.partition("write ")[2])
    return override


@pytest.mark.parametrize("name", UNREADABLE)
def test_the_override_shown_for_an_unreadable_name_works(name: str) -> None:
    with pytest.raises(HydraException) as caught:
        OverridesParser.create().parse_overrides([f"pool.images={name}"])
    override = shown_override(explain(caught.value))
    assert OverridesParser.create().parse_override(override).value() == name


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_can_be_quoted(name: str) -> None:
    (override,) = shlex.split(quoted(f"pool.images={name}"))
    assert OverridesParser.create().parse_override(override).value() == name


def test_the_override_shown_in_a_sweep_keeps_its_values_apart() -> None:
    arguments = ["-m", "pool.images=büro,日本,'a b'"]
    with pytest.raises(HydraException) as caught:
        OverridesParser.create().parse_overrides(arguments[1:])
    value = OverridesParser.create().parse_override(shown_override(explain(caught.value, arguments))).value()
    assert isinstance(value, ChoiceSweep)
    assert [one.text for one in value.list] == ["büro", "日本", "a b"]


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("paths.store=1_000", 'paths.store="1_000"'),
        ("paths.runs=null", 'paths.runs="null"'),
        ("paths.answers=true", 'paths.answers="true"'),
        ("pool=2024", 'pool="2024"'),
        ("pool.images=photos ", 'pool.images="photos "'),
    ],
)
def test_names_that_hydra_would_change_are_refused(
    override: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos ").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PreselError) as caught:
        check_overrides(["seed=1", override])
    assert shown_override(str(caught.value)) == shown
    check_overrides(
        [shown, "budget=500", "paths.min_free_gb=1", "experiment=null", "-m", "pool.images=photos"]
    )


@pytest.mark.parametrize("folder", ["paths.store", "pool.images"])
def test_a_folder_without_a_name_is_refused(folder: str) -> None:
    with pytest.raises(PreselError, match=rf"\A{folder} is empty; name a folder"):
        check_overrides([f"{folder}="])


@pytest.mark.parametrize("options", ["[1,2]", "[random,7]", "[null]", "[[]]", "[{a:1}]"])
def test_a_list_of_options_holds_names(options: str) -> None:
    with pytest.raises(PreselError, match="holds their names; write experiment=NAME"):
        check_overrides([f"experiment={options}"])
    check_overrides(["experiment=[table1,'quickstart']", "tune.betas=[1,2]"])


@pytest.mark.parametrize("override", ["~pool", "~pool=digit_scenes", "pool=null", "pool=[manifest]"])
def test_a_group_takes_exactly_one_option(override: str) -> None:
    with pytest.raises(PreselError) as error:
        check_overrides([override])
    assert str(error.value) == f"{override}: pool takes exactly one option; write pool=NAME"


def test_overrides_are_a_list() -> None:
    with pytest.raises(PreselError, match=r"give a list of texts: \['budget=0.1'\]"):
        presel.compose("budget=0.1")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["strategy.tau=0.5"], "strategy.tau takes its value from tau.value; set that"),
        (["++strategy.score=difference"], "strategy.score takes its value from irs.score; set that"),
        (["-m", "strategy=random,presel", "strategy.tau=1,2"], "strategy.tau takes its value from tau.value"),
        (
            ["instructions=label_studio", "instructions.answers=a"],
            "takes its value from paths.answers; set that",
        ),
    ],
)
def test_one_setting_has_one_name(overrides: list[str], told: str) -> None:
    with pytest.raises(PreselError, match=re.escape(told)):
        check_overrides(overrides)
    # COINCIDE has a temperature of its own, and a default may be replaced.
    check_overrides(["strategy=coincide", "strategy.tau=0.5", "evaluation=llava_json", "evaluation.images=a"])


def test_a_sweep_may_set_what_only_one_of_its_options_has(tmp_path: Path) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy/mine.yaml").write_text("_target_: mine.Mine\nsharpness: 1\n")
    sweep = ["-m", "strategy=random,presel", "strategy.pick=random", "seed=0,1", "strategy.pikc=1"]
    assert spread_over_jobs(sweep) == [*sweep[:2], "++strategy.pick=random", *sweep[3:]]
    swept = ["-m", "experiment=quickstart", "strategy.pick=random"]
    assert spread_over_jobs(swept) == [*swept[:2], "++strategy.pick=random"]
    mine = ["-m", f"hydra.searchpath=[file://{tmp_path}]", "strategy=mine,random", "strategy.sharpness=1,2"]
    assert spread_over_jobs(mine) == [*mine[:3], "++strategy.sharpness=1,2"]
    assert spread_over_jobs(swept[1:]) == [swept[1], "++strategy.pick=random"]
    # The default option, which Hydra composes before any job, may lack what all of the sweep have.
    gradients = ["-m", "strategy=icons,less", "strategy.dimension=512"]
    assert spread_over_jobs(gradients) == [*gradients[:2], "++strategy.dimension=512"]
    one_run = ["strategy=random", "strategy.pick=random"]
    of_all = ["-m", "seed=1,2", "strategy.pick=random"]
    for strict in (one_run, of_all, [*swept[1:], "hydra.mode=RUN"]):
        assert spread_over_jobs(strict) == strict

    job = ["strategy=random", "++strategy.pick=random", "++seed=1"]
    config = configured(*job)
    assert drop_foreign(config, job, sweep) == ["strategy=random", "seed=1"]
    assert build(config).strategy == Random()
    job = ["strategy=presel", "++strategy.pick=random"]
    config = configured(*job)
    assert drop_foreign(config, job, sweep) == ["strategy=presel", "strategy.pick=random"]
    assert config.strategy.pick == "random"
    # What no option of the sweep has is a mistake.
    job = ["strategy=random", "++strategy.pikc=1"]
    config = configured(*job)
    drop_foreign(config, job, [*sweep[:-1], job[1]])
    with pytest.raises(HydraException, match="pikc"):
        build(config)


@pytest.mark.parametrize(
    ("overrides", "unused"),
    [
        ([], RIVALS_ONLY),
        (["strategy=clip_score"], {*PRESEL_ONLY, *RIVALS_ONLY, "encoder", "cluster"} - {"clip"}),
        (["strategy=self_filter"], {*PRESEL_ONLY, "validation", "encoder", "cluster"} - {"reference"}),
        (["strategy=icons"], {*PRESEL_ONLY, "clip", "score_net", "encoder", "cluster"} - {"reference"}),
        (["strategy=tive"], {*PRESEL_ONLY, *RIVALS_ONLY, "encoder", "cluster"} - {"reference"}),
        # Their settings hold τ and the score of IRS, which these modes do not read.
        (["strategy.weighting=uniform"], {*RIVALS_ONLY, "irs", "tau"}),
        (["strategy=precover"], {*PRESEL_ONLY, *RIVALS_ONLY, "cluster"}),
        (["strategy=random", "until=selection"], {*PRESEL_ONLY, *RIVALS_ONLY, "encoder", "cluster"}),
    ],
)
def test_what_a_run_does_not_read_is_known(overrides: list[str], unused: set[str]) -> None:
    config = configured(*overrides)
    assert set(unused_groups(config, build(config))) == unused


@pytest.mark.parametrize(
    ("mode", "settings", "decides"),
    [
        ([], ["strategy.redundancy_penalty=2", "strategy.redundancy_power=2"], False),
        (["strategy.pick=distinct"], ["strategy.redundancy_penalty=2", "strategy.redundancy_power=2"], True),
        (["strategy.weighting=uniform"], ["strategy.shrink=0.5", "tau.value=1", "irs=difference"], False),
        (["strategy.weighting=size"], ["strategy.shrink=0.5"], True),
        (["strategy=precover"], ["tau.value=1", "irs=difference", "strategy.exponent=1"], False),
        (["strategy=precover"], ["strategy.questions=3", "strategy.beta=2"], False),
        (
            ["strategy=precover", "strategy.picks=uncertainty"],
            ["strategy.questions=3", "strategy.beta=2"],
            True,
        ),
        (["strategy=precover", "strategy.picks=random"], ["strategy.center=false"], False),
        (["strategy=precover", "strategy.budgets=relevance"], ["tau.value=1", "irs=difference"], True),
        (["strategy=precover", "strategy.budgets=gain"], ["strategy.exponent=1"], True),
    ],
)
def test_settings_that_decide_nothing_are_in_no_key(
    mode: list[str], settings: list[str], decides: bool
) -> None:
    plain = build(configured(*mode)).selection.key
    for setting in settings:
        config = configured(*mode, setting)
        pipeline = build(config)
        assert (pipeline.selection.key != plain) == decides
        ignored = without_effect([*mode, setting], unused_groups(config, pipeline), pipeline.strategy)
        assert ignored == ([] if decides else [setting])


def test_no_reference_model_is_tuned_where_irs_decides_nothing() -> None:
    labels = [stage.label for stage in upstream(build(configured("strategy.weighting=size")).selection)]
    assert "instructions (reference)" not in labels
    assert "model (reference)" not in labels


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
    config = configured(*OPENAI)
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


def test_a_need_that_there_is_not_is_told_before_any_work() -> None:
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


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"a: !!python/object/apply:os.system ['true']",
            'mine.yaml: line 1: the YAML cannot be read ("could not',
        ),
        (b"a: [1", "mine.yaml: line 1: the YAML cannot be read"),
        (
            b"a: 1\n b: 2",
            "mine.yaml: line 2: the YAML cannot be read ('mapping values are not allowed here')",
        ),
        ("# prüfen".encode("latin-1"), "the configuration cannot be read ('utf-8' codec"),
        (b"a: " + b"[" * 3000, "the configuration cannot be read (maximum recursion depth exceeded"),
        (b"3", "the configuration cannot be read (Invalid loaded object type: int)"),
        (b"a: ${b c", "token recognition error"),
    ],
)
def test_yaml_that_cannot_be_read_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_bytes(content)
    assert told in mistake(f"hydra.searchpath=[file://{tmp_path}]", "strategy=mine")


def test_an_error_that_is_its_own_cause_is_explained() -> None:
    # As OmegaConf raises it while a debugger or coverage traces.
    error = OmegaConfBaseException("wrong")
    error.__cause__ = error
    assert explain(error) == "the configuration: wrong"


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
