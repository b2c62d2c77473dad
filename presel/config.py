"""The typed root of the configuration, and how it becomes a pipeline."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from presel.errors import PreselError
from presel.pipeline import Pipeline


@dataclass
class Reference:
    """Group `reference`: the images instructed before selection."""

    share: float = MISSING


@dataclass
class Irs:
    """Group `irs`: the instruction relevance score."""

    score: str = MISSING
    batch_size: int = MISSING


@dataclass
class Tau:
    """Group `tau`: temperature of the task weights; None stands for 1/sqrt(M)."""

    value: float | None = MISSING


@dataclass
class Neighbors:
    """Group `neighbors`: the neighbours behind neighbor centrality."""

    k: int = MISSING
    scope: str = MISSING


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
    reference: Reference = MISSING
    lvlm: Any = MISSING
    tune: Any = MISSING
    irs: Irs = MISSING
    tau: Tau = MISSING
    encoder: Any = MISSING
    cluster: Any = MISSING
    neighbors: Neighbors = MISSING
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
        PreselError: If a required setting has no value.
    """
    evaluated = config.until == "evaluation"
    settings = OmegaConf.to_container(config, resolve=False)
    assert isinstance(settings, dict)
    # Asked here, because Hydra names whatever refers to the setting instead of the setting itself.
    for key in _missing(
        {group: value for group, value in settings.items() if group != "evaluation" or evaluated}
    ):
        raise PreselError(f"{key} has no value; set it, as in {key}=…")

    def make(group: str) -> Any:
        return instantiate(config[group], _convert_="all")

    workers = config.executor.workers
    return Pipeline(
        source=make("pool"),
        benchmark_source=make("evaluation") if evaluated else None,
        lvlm=make("lvlm"),
        tuning=make("tune"),
        encoder=make("encoder"),
        clustering=make("cluster"),
        provider=make("instructions"),
        strategy=make("strategy"),
        reference_share=config.reference.share,
        budget=config.budget,
        seed=config.seed,
        relevance_batch_size=config.irs.batch_size,
        hardware=make("trainer"),
        workers=len(os.sched_getaffinity(0)) if workers is None else workers,
        logger=make("logger"),
    )


def _missing(settings: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """The settings that were left to the user, by their full keys."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _missing(value, f"{prefix}{key}.")
        elif value == MISSING:
            yield f"{prefix}{key}"
