"""The typed root of the configuration, and how it becomes a pipeline."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from presel.data.checks import shown
from presel.errors import PreselError

if TYPE_CHECKING:
    from presel.pipeline import Pipeline

# What `_target_` may name: a subclass of one of these. Nothing else in a configuration makes objects. The
# classes are imported when they are needed, so that a mistake in a name is refused at once.
BASES: dict[str, tuple[str, ...]] = {
    "pool": ("presel.data.sources.Source",),
    "tasks": ("presel.stages.tasks.Tasks",),
    "lvlm": ("presel.models.lvlm.Lvlm",),
    "tune": ("presel.models.tune.Tune",),
    "encoder": ("presel.models.encoder.Encoder",),
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
    "trainer": ("presel.models.hardware.Hardware",),
    "logger": ("presel.models.loggers.TrainingLogger",),
}


@dataclass
class Reference:
    """Group `reference`: the images instructed before selection."""

    share: float = MISSING


@dataclass
class Irs:
    """Group `irs`: the instruction relevance score."""

    score: str = MISSING


@dataclass
class Tau:
    """Group `tau`: temperature of the task weights; None stands for 1/sqrt(M)."""

    value: float | None = MISSING


@dataclass
class Allocation:
    """Group `allocation`: how budgets are rounded."""

    tasks: str = MISSING
    clusters: str = MISSING


@dataclass
class Paths:
    """Group `paths`: where results go."""

    store: str = MISSING
    runs: str = MISSING
    answers: str = MISSING
    min_free_gb: float = MISSING


@dataclass
class Executor:
    """Group `executor`: processes that decode images and prepare batches; None takes one a core."""

    workers: int | None = MISSING
    batch_tokens: int = MISSING


@dataclass
class Config:
    """Every key there is. Groups typed `Any` hold a component, which checks its own arguments."""

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
    trainer: Any = MISSING
    logger: Any = MISSING
    paths: Paths = MISSING
    executor: Executor = MISSING


# For the folders that Hydra itself makes, in processes that other launchers start as well.
OmegaConf.register_new_resolver("home", os.path.expanduser, replace=True)


def register() -> None:
    """Makes the schema known to Hydra, for `defaults: [schema, …]`."""
    ConfigStore.instance().store(name="schema", node=Config)


def build(config: DictConfig) -> "Pipeline":
    """Makes the pipeline; every component checks its arguments here, before any work.

    Group `evaluation` counts only where the run goes that far.

    Raises:
        PreselError: If a required setting has no value, or one is out of range.
    """
    evaluated = config.until == "evaluation"
    settings = OmegaConf.to_container(config, resolve=False)
    assert isinstance(settings, dict)
    # Asked here, because Hydra names whatever refers to the setting instead of the setting itself.
    for key in _missing(
        {group: value for group, value in settings.items() if group != "evaluation" or evaluated}
    ):
        raise PreselError(f"{key} has no value; set it, as in {key}=…")
    _check_ranges(config)

    def make(group: str) -> Any:
        settings = _with_home(OmegaConf.to_container(config[group], resolve=True))
        _check_targets(settings, group)
        # Inside its group again, which errors name.
        made = instantiate(OmegaConf.create({group: settings})[group], _convert_="all")
        if not isinstance(made, _bases(group)):
            bases = " or ".join(BASES[group])
            raise PreselError(f"{group} makes no {bases}; leave out keys such as _partial_")
        return made

    groups = [group for group in BASES if "." not in group and (evaluated or group != "evaluation")]
    made = {group: make(group) for group in groups}
    # After the components, because it imports all stages.
    from presel.distributed.runtime import Runtime
    from presel.pipeline import Pipeline
    from presel.selection.threads import cpu_count

    workers = config.executor.workers
    return Pipeline(
        source=made["pool"],
        tasks=made["tasks"],
        benchmark_source=made.get("evaluation"),
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
            workers=cpu_count() if workers is None else workers,
            batch_tokens=config.executor.batch_tokens,
            logger=made["logger"],
        ),
    )


# Ranges of the settings that belong to no component.
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": ("a whole number of at least 0", lambda value: value >= 0),
    "budget": ("a share up to 1, or a number of images", lambda value: 0 <= value < math.inf),
    "reference.share": ("above 0 and below 1", lambda value: 0 < value < 1),
    # Named here as well, because the strategy that reads it would be named instead.
    "tau.value": ("above 0, or null for 1/sqrt(M)", lambda value: value is None or value > 0),
    "executor.batch_tokens": ("at least 1", lambda value: value >= 1),
    "executor.workers": ("at least 0, or null for one a core", lambda value: value is None or value >= 0),
    "paths.min_free_gb": ("at least 0", lambda value: value >= 0),
}


def _check_ranges(config: DictConfig) -> None:
    for key, (range_, holds) in _RANGES.items():
        value = OmegaConf.select(config, key)
        if not holds(value):
            raise PreselError(f"{key} is {value}; it must be {range_}")


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
    if not (isinstance(kind, type) and issubclass(kind, _bases(place))):
        raise PreselError(f"{place}._target_ is {shown(target)}, which is no such class; {remedy}")


def _bases(place: str) -> tuple[type, ...]:
    return tuple(map(resolve_name, BASES[place]))


def _missing(settings: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """The settings that were left to the user, by their full keys."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _missing(value, f"{prefix}{key}.")
        elif value == MISSING:
            yield f"{prefix}{key}"
