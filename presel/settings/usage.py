"""What of its configuration a run reads."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from presel.settings.schema import BASES, bases
from presel.storage.stage import upstream

if TYPE_CHECKING:
    from presel.pipeline import Pipeline

# Groups that every run reads, and those that only say how or where it computes.
_ALWAYS = {"pool", "tasks", "strategy", "evaluation", "trainer", "logger", "paths", "executor"}
# Groups whose settings reach a stage as plain values: the stage's name.
_BY_STAGE = {"reference": "reference", "score_net": "self_filter"}


def unused(config: DictConfig, pipeline: "Pipeline") -> list[str]:
    """The groups of which a run reads nothing, and settings of its strategy that decide nothing.

    A run that ends early counts as one that goes on to the final model.

    Returns:
        Keys such as `tau` where the strategy is random, `strategy.beta` where picks are not by uncertainty.
    """
    stages = upstream(pipeline.model)
    held = [value for stage in stages for value in vars(stage).values()]
    used = _ALWAYS | {group for group, name in _BY_STAGE.items() if name in {stage.name for stage in stages}}
    used |= {group for group in BASES if any(isinstance(value, bases(group)) for value in held)}
    groups = [str(group) for group in config if OmegaConf.is_config(config[group])]
    settings: Any = OmegaConf.to_container(config, resolve=False)
    for name in pipeline.strategy.unused_settings:
        settings["strategy"].pop(name, None)
    # Settings without a component are read where a component takes its value from them.
    text = "".join(str(settings[group]) for group in used & set(groups))
    found = [group for group in groups if group not in used and f"${{{group}." not in text]
    return found + [f"strategy.{name}" for name in sorted(pipeline.strategy.unused_settings)]


def sets_any_of(override: str, keys: Collection[str]) -> bool:
    """Whether an override sets one of these keys, or something of a group among them."""
    key = override.lstrip("+~").partition("=")[0]
    return key in keys or key.partition(".")[0] in keys
