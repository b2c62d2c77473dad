"""Mistakes on the command line and in YAML: each is told in one sentence, before any work."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

import presel
from presel.errors import PreselError
from presel.settings.errors import explain
from presel.settings.overrides import check_overrides, quoted
from tests.composing import configured, mistake

OPENAI = ("instructions=openai", "instructions.model=any")


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
        (
            ["hydra.searchpath=[file://my conf, ü]"],
            """write 'hydra.searchpath=["file://my conf","ü"]'""",
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
        (["tune.lr=true"], "tune.lr: input should be a valid number (it is True)"),
        (["tune.epochs=true"], "tune.epochs: input should be a valid integer (it is True)"),
        (
            ["pool.max_rejected_share=true"],
            "pool.max_rejected_share: input should be a valid number (it is T",
        ),
        (["tune.max_grad_norm=false"], "tune.max_grad_norm: input should be a valid number (it is False)"),
        (["trainer.devices=true"], "trainer.devices: input should be a valid integer or 'auto' (it is True)"),
        (["seed=true"], "seed: Value 'True' of type 'bool' could not be converted to Integer"),
        (["budget=true"], "budget: Value 'True' of type 'bool' could not be converted to Float"),
        (
            ["pool=image_folder", "pool.images=a", "pool.limit=true"],
            "pool.limit: input should be a valid integer (it is True)",
        ),
        (
            ["tune.lora_rank=99999999"],
            "tune.lora_rank: input should be less than or equal to 65536",
        ),
        (["tune.lora_alpha=inf"], "tune.lora_alpha: input should be a finite number (it is inf)"),
        (
            ["tune.epochs=99999999999999999999"],
            "tune.epochs: input should be less than or equal to 9223372036854775807",
        ),
        (
            ["lvlm.max_length=99999999999999999999"],
            "lvlm.max_length: input should be less than or equal to 92",
        ),
        (
            ["encoder.batch_size=99999999999999999999"],
            "encoder.batch_size: input should be less than or equal",
        ),
        (
            ["cluster.seed=4294967296"],
            "cluster.seed: input should be less than or equal to 4294967295 (it is ",
        ),
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
def test_a_mistake_is_reported_in_one_sentence(overrides: list[str], sentence: str) -> None:
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


@pytest.mark.parametrize("folder", ["paths.store", "pool.images", "hydra.run.dir"])
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


@pytest.mark.parametrize("option", ["nope", "null"])
def test_unknown_published_settings_are_refused(option: str) -> None:
    with pytest.raises(PreselError, match=rf"published={option}: there is no .*, or write ~published"):
        check_overrides([f"published={option}"])
    check_overrides(["~published", "published=[]", "published=vision_flan_coincide"])


def test_overrides_are_a_list() -> None:
    with pytest.raises(PreselError, match=r"give a list of texts: \['budget=0.1', 'seed=1'\]"):
        presel.compose("budget=0.1 seed=1")


def test_an_option_is_not_added() -> None:
    with pytest.raises(PreselError, match=r"\+pool=manifest: pool has an option already; write it without"):
        check_overrides(["+pool=manifest"])


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL", raising=False)
    told = mistake("lvlm=hf", "lvlm.path=${oc.env:MODEL}")
    assert told == "lvlm.path: the environment variable MODEL is not set; set it where you run the command"


def test_how_a_key_is_added_to_what_users_name(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /instructions: openai\n"
        "instructions: {model: any, prompts: {by_task: {cars: detail}}}\n"
    )
    mine = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    told = mistake(*mine, "instructions.prompts.by_task={kitchen: detail}")
    assert told == (
        "instructions.prompts.by_task has no 'kitchen' to change; write "
        "+instructions.prompts.by_task.kitchen=VALUE to add it"
    )
    prompts = configured(*mine, "+instructions.prompts.by_task.kitchen=detail").instructions.prompts
    assert prompts.by_task == {"cars": "detail", "kitchen": "detail"}


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
def test_yaml_that_cannot_be_read_is_reported(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_bytes(content)
    assert told in mistake(f"hydra.searchpath=[file://{tmp_path}]", "strategy=mine")


def test_an_error_that_is_its_own_cause_is_explained() -> None:
    # As OmegaConf raises it while a debugger or coverage traces.
    error = OmegaConfBaseException("wrong")
    error.__cause__ = error
    assert explain(error) == "the configuration: wrong"


def test_an_experiment_without_its_first_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("budget: 3\n")
    with pytest.raises(PreselError, match="file of experiment=mine lacks the line `# @package _global_` at"):
        presel.compose([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])
