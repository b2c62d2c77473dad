"""The typed root of the configuration, and how it becomes a pipeline."""

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from presel.data.checks import shown
from presel.errors import PreselError
from presel.instructions.secrets import has_credentials, holds_key
from presel.settings.overrides import unknown_key

if TYPE_CHECKING:
    from presel.pipeline import Pipeline

# The steps that a run can end with.
TARGETS = ("selection", "instructions", "model", "merged", "evaluation")

# What `_target_` may name: a subclass of one of these. Nothing else in a configuration makes objects. The
# classes are imported when they are needed, so that a mistake in a name is refused at once.
BASES: dict[str, tuple[str, ...]] = {
    "pool": ("presel.data.sources.Source",),
    "tasks": ("presel.stages.tasks.Tasks",),
    "lvlm": ("presel.models.lvlm.Lvlm",),
    "tune": ("presel.models.tune.Tune",),
    "encoder": ("presel.models.encoder.ImageEncoder", "presel.models.precomputed.Precomputed"),
    "encoder.lvlm": ("presel.models.lvlm.Lvlm",),
    "cluster": ("presel.stages.clusters.Clustering",),
    "clip": ("presel.models.clip.Clip",),
    "score_net": ("presel.stages.self_filter.ScoreNet",),
    "neighbors": ("presel.stages.centrality.Neighbors",),
    "strategy": ("presel.strategies.base.Strategy",),
    "instructions": ("presel.instructions.provider.InstructionProvider",),
    "instructions.prompts": ("presel.instructions.prompts.Prompts",),
    "evaluation": (
        "presel.evaluation.benchmarks.Benchmarks",
        "presel.evaluation.external.ExternalBenchmarks",
    ),
    "validation": ("presel.data.validation.Validation",),
    "trainer": ("presel.models.hardware.Hardware",),
    "logger": ("presel.models.loggers.TrainingLogger",),
    "executor": ("presel.distributed.executors.LocalExecutor",),
}


@dataclass
class Reference:
    """Group `reference`.

    Attributes:
        share: Share of each task, above 0 and below 1.
    """

    share: float = MISSING


@dataclass
class Irs:
    """Group `irs`.

    Attributes:
        score: What the losses with and without the question are made into: ratio (eq. 3), difference,
            perplexity_ratio or response_loss.
    """

    score: str = MISSING


@dataclass
class Tau:
    """Group `tau`.

    Attributes:
        value: The temperature, above 0; null for 1/sqrt(number of tasks).
    """

    value: float | None = MISSING


@dataclass
class Allocation:
    """Group `allocation`.

    Attributes:
        tasks: Over tasks: exact, paper, released_llava or released_vision_flan.
        clusters: Over the clusters of a task: exact, paper or released.
    """

    tasks: str = MISSING
    clusters: str = MISSING


@dataclass
class Paths:
    """Group `paths`.

    Attributes:
        store: Results of all stages; runs that share it compute each only once.
        runs: A folder for each run.
        answers: Instructions that were paid for; deleting the store leaves them alone.
        min_free_gb: A run stops where less than this is free on the store's disk, in GB.
    """

    store: str = MISSING
    runs: str = MISSING
    answers: str = MISSING
    min_free_gb: float = MISSING


@dataclass
class Config:
    """All settings. Groups typed `Any` hold a component, which checks its own arguments.

    Attributes:
        seed: Random seed of the reference set, the selection and the tuning: a whole number from 0 to
            4294967295.
        budget: Images to instruct, the reference set included: up to 1 a share of the pool, as in 0.15; above
            1 a number of images, as in 5400.
        until: The last step to run: selection, instructions, model, merged or evaluation.
        pool: The images to choose from.
        tasks: How the pool is divided into tasks.
        reference: The images instructed before the selection, to measure the relevance of instructions.
        lvlm: The vision-language model that is tuned.
        tune: How it is tuned.
        irs: The instruction relevance score of a sample (eq. 3), which weighs tasks.
        tau: Temperature of the task weights (eq. 5).
        encoder: The image encoder behind clusters and centrality.
        cluster: How the images of a task are clustered.
        clip: The model of image and text behind strategy=clip_score.
        score_net: Training of the net behind strategy=self_filter.
        neighbors: The neighbors of an image that its centrality is measured by (eq. 7).
        allocation: How budgets are rounded to whole numbers of images (eq. 6).
        strategy: How the images are chosen.
        instructions: Where the instructions of chosen images come from.
        evaluation: The benchmarks that the tuned model is scored on.
        validation: Held-out samples with answers, for strategies that read some before they select.
        trainer: Where models run: devices, precision, processes.
        logger: Where training metrics go.
        paths: Where results are kept.
        executor: Where shards are computed, by how many worker processes, and the memory that scoring takes.
    """

    seed: int = MISSING
    budget: float = MISSING
    until: str = MISSING
    pool: Any = MISSING
    tasks: Any = MISSING
    reference: Reference = MISSING
    lvlm: Any = MISSING
    tune: Any = MISSING
    irs: Irs = MISSING
    tau: Tau = MISSING
    encoder: Any = MISSING
    cluster: Any = MISSING
    clip: Any = MISSING
    score_net: Any = MISSING
    neighbors: Any = MISSING
    allocation: Allocation = MISSING
    strategy: Any = MISSING
    instructions: Any = MISSING
    evaluation: Any = MISSING
    validation: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    paths: Paths = MISSING
    executor: Any = MISSING


# For the folders that Hydra itself makes, in processes that other launchers start as well.
OmegaConf.register_new_resolver("home", os.path.expanduser, replace=True)


def register() -> None:
    """Makes the schema known to Hydra, for `defaults: [schema, …]`."""
    ConfigStore.instance().store(name="schema", node=Config)


def check(config: DictConfig) -> None:
    """Checks what needs no component, whose imports take seconds.

    Raises:
        PreselError: If there is no such setting, a required one has no value, or one is out of range.
    """
    settings = OmegaConf.to_container(config, resolve=False)
    assert isinstance(settings, dict)
    try:
        # Refuses keys that `+` added where the schema has none; components refuse their own.
        OmegaConf.merge(Config, settings)
    except ConfigKeyError as error:
        raise PreselError(unknown_key(str(error.full_key))) from error
    if config.until != "evaluation":
        settings.pop("evaluation", None)
    # Here, because Hydra's own error names the setting that refers to the missing one.
    _check_not_missing(settings)
    for key, (range_, holds) in RANGES.items():
        value = OmegaConf.select(config, key)
        if not holds(value):
            raise PreselError(f"{key} is {value}; it must be {range_}")


def build(config: DictConfig) -> "Pipeline":
    """Makes the pipeline; every component checks its arguments here, before any work.

    Group `evaluation` counts only where the run goes that far.

    Raises:
        PreselError: If a setting is missing or out of range.
    """
    check(config)
    # The user's own strategies may lie in the working directory, as with `python -m`.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    _check_logger(config.logger)
    evaluated = config.until == "evaluation"
    groups = [group for group in BASES if "." not in group and (evaluated or group != "evaluation")]
    made = {group: _component(config, group) for group in groups}
    # After the components, because it imports all stages.
    from presel.distributed.runtime import Runtime
    from presel.pipeline import Pipeline

    executor = made["executor"]
    return Pipeline(
        source=made["pool"],
        tasks=made["tasks"],
        benchmark_source=made.get("evaluation"),
        validation_source=made["validation"],
        lvlm=made["lvlm"],
        tuning=made["tune"],
        encoder=made["encoder"],
        clustering=made["cluster"],
        neighbors=made["neighbors"],
        clip=made["clip"],
        score_net=made["score_net"],
        provider=made["instructions"],
        strategy=made["strategy"],
        reference_share=config.reference.share,
        budget=config.budget,
        seed=config.seed,
        runtime=Runtime(
            hardware=made["trainer"],
            workers=executor.worker_processes(),
            batch_tokens=executor.batch_tokens,
            logger=made["logger"],
            executor=executor,
        ),
    )


def _component(config: DictConfig, group: str) -> Any:
    """Makes the component of a group."""
    settings = _with_home(OmegaConf.to_container(config[group], resolve=True))
    # Again, since a key may take its value from another setting.
    _check_not_missing(settings, f"{group}.")
    _check_targets(settings, group)
    # Inside its group again, which errors name.
    made = instantiate(OmegaConf.create({group: settings})[group], _convert_="all")
    if not isinstance(made, bases(group)):
        kinds = " or ".join(BASES[group])
        raise PreselError(f"{group} makes no {kinds}; leave out keys such as _partial_")
    return made


def _check_logger(logger: DictConfig) -> None:
    """Checks that a logger's arguments hold no key, since every run saves its settings."""
    for name, value in (logger.get("arguments") or {}).items():
        if holds_key(name, value) or ("://" in str(value) and has_credentials(str(value))):
            raise PreselError(
                f"logger.arguments.{name} may not hold a key or credentials, since every run saves its "
                "settings; put them into the environment variables that the logger reads"
            )


# What the settings that belong to no component may be.
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    # The upper bound is that of PyTorch Lightning and scikit-learn.
    "seed": ("a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    "budget": (
        "a share of the pool, above 0 and up to 1 (0.15), or a whole number of images (5400)",
        lambda value: 0 < value <= 1 or (1 < value < math.inf and value == int(value)),
    ),
    "until": (f"one of {', '.join(TARGETS)}", lambda value: value in TARGETS),
    "reference.share": ("above 0 and below 1", lambda value: 0 < value < 1),
    # Here as well, because an error of the strategy that reads it would name the strategy's key.
    "tau.value": ("above 0, or null for 1/sqrt(M)", lambda value: value is None or value > 0),
    "paths.min_free_gb": ("at least 0", lambda value: value >= 0),
}


def _with_home(value: Any) -> Any:
    """Expands `~/` at the beginning of values, which a shell does not do behind an equals sign."""
    if isinstance(value, dict):
        return {key: _with_home(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_home(one) for one in value]
    if isinstance(value, str) and (value == "~" or value.startswith("~/")):
        return str(Path(value).expanduser())
    return value


def _check_targets(value: Any, place: str) -> None:
    """Makes sure that every `_target_` is a component's class, before any of them is called."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return
    if place in BASES or "_target_" in value:
        _check_target(value.get("_target_"), place)
    for key, one in value.items():
        _check_targets(one, f"{place}.{key}")


def _check_target(target: Any, place: str) -> None:
    if place not in BASES:
        raise PreselError(f"{place} holds _target_, which only {', '.join(BASES)} may; leave it out")
    remedy = f"name a subclass of {' or '.join(BASES[place])}"
    if target is None:
        raise PreselError(f"{place} has no _target_; {remedy} there")
    module, _, name = str(target).rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    # A user's module may raise anything while it is imported.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise PreselError(
            f"{place}._target_ is {shown(target)}, which cannot be imported ({shown(reason)}); {remedy}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, bases(place))):
        raise PreselError(f"{place}._target_ is {shown(target)}, which is no such class; {remedy}")


def bases(place: str) -> tuple[type, ...]:
    """The classes of which a group's component is a subclass."""
    return tuple(map(resolve_name, BASES[place]))


def _check_not_missing(settings: dict[Any, Any], prefix: str = "") -> None:
    """Makes sure that every setting that is left to the user has a value."""
    for key, value in settings.items():
        if isinstance(value, dict):
            _check_not_missing(value, f"{prefix}{key}.")
        elif value == MISSING:
            raise PreselError(f"{prefix}{key} has no value; set it, as in {prefix}{key}=…")
