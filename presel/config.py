"""The typed root of the configuration, and how it becomes a pipeline."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from presel.errors import PreselError
from presel.pipeline import Pipeline
from presel.processors import processors


@dataclass
class Reference:
    """Group `reference`: the images instructed before selection."""

    share: float = MISSING


@dataclass
class Irs:
    """Group `irs`: the instruction relevance score."""

    score: str = MISSING
    batch_tokens: int = MISSING


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


def register() -> None:
    """Makes the schema known to Hydra, for `defaults: [schema, …]`."""
    ConfigStore.instance().store(name="schema", node=Config)


def build(config: DictConfig) -> Pipeline:
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
        return instantiate(config[group], _convert_="all")

    workers = config.executor.workers
    return Pipeline(
        source=make("pool"),
        tasks=make("tasks"),
        benchmark_source=make("evaluation") if evaluated else None,
        lvlm=make("lvlm"),
        tuning=make("tune"),
        encoder=make("encoder"),
        clustering=make("cluster"),
        neighbors=make("neighbors"),
        clip=make("clip"),
        score_net=make("score_net"),
        provider=make("instructions"),
        strategy=make("strategy"),
        reference_share=config.reference.share,
        budget=config.budget,
        seed=config.seed,
        relevance_batch_tokens=config.irs.batch_tokens,
        hardware=make("trainer"),
        workers=processors() if workers is None else workers,
        logger=make("logger"),
    )


# Ranges of the settings that belong to no component.
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": ("a whole number of at least 0", lambda value: value >= 0),
    "budget": ("a share up to 1, or a number of images", lambda value: 0 <= value < math.inf),
    "reference.share": ("above 0 and below 1", lambda value: 0 < value < 1),
    # Named here as well, because the strategy that reads it would be named instead.
    "tau.value": ("above 0, or null for 1/sqrt(M)", lambda value: value is None or value > 0),
    "irs.batch_tokens": ("at least 1", lambda value: value >= 1),
    "executor.workers": ("at least 0, or null for one a core", lambda value: value is None or value >= 0),
    "paths.min_free_gb": ("at least 0", lambda value: value >= 0),
}


def _check_ranges(config: DictConfig) -> None:
    for key, (range_, holds) in _RANGES.items():
        value = OmegaConf.select(config, key)
        if not holds(value):
            raise PreselError(f"{key} is {value}; it must be {range_}")


def _missing(settings: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """The settings that were left to the user, by their full keys."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _missing(value, f"{prefix}{key}.")
        elif value == MISSING:
            yield f"{prefix}{key}"
