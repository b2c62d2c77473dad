"""Jobs of a sweep: what their configurations have in common is composed once."""

import copy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepLoader(ConfigLoaderImpl):
    """Composes what is left of a job without its settings once, and copies it for each job.

    Hydra composes every job twice, from all files: to refuse a wrong override before the first job runs,
    and to launch it.
    """

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        """Looks for configurations where Hydra does."""
        super().__init__(config_search_path)
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The configuration of one job, the same as Hydra's own."""
        overrides = OverridesParser.create().parse_overrides(sweep_overrides)
        # Hydra as well sets settings (a group has no dot in its name) after choosing groups. Among additions,
        # deletions and the like, which stay in `rest`, their place would count.
        movable = all(_is_plain(override) for override in overrides)
        settings = [override for override in overrides if movable and "." in override.key_or_group]
        rest = tuple(str(override.input_line) for override in overrides if override not in settings)
        if rest not in self._composed:
            self._composed[rest] = super().load_sweep_config(master_config, list(rest))
        config = copy.deepcopy(self._composed[rest])
        self._apply_overrides_to_config(settings, config)
        named = [override for override in overrides if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in named]
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=named, **config.hydra.job.config.override_dirname
        )
        return config


def _is_plain(override: Override) -> bool:
    """Whether it is one value for what is there already, outside Hydra's own configuration."""
    return (
        override.type is OverrideType.CHANGE
        and override.package is None
        and not override.is_sweep_override()
        and not override.is_hydra_override()
        and not isinstance(override.value(), dict)
    )


class ComposeOnce(Callback):
    """Hydra callback: sweeps compose their jobs by `SweepLoader`."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Replaces Hydra's loader before the sweep starts."""
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.config_loader = SweepLoader(hydra.config_loader.get_search_path())
