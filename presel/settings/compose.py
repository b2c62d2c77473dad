"""Composing a configuration in this process, without the command line."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from presel.errors import PreselError
from presel.instructions.secrets import changed_settings, refuse_keys, refuse_saved_keys
from presel.settings.errors import MISTAKES, UNREADABLE, explain
from presel.settings.options import config_folder
from presel.settings.overrides import check_overrides
from presel.settings.schema import register


@contextmanager
def isolated_hydra() -> Iterator[None]:
    """Leaves the caller's own Hydra, if there is one, as it was."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer


def composed(overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    """The configuration that `presel run` would run on.

    Args:
        overrides: As on the command line, without flags.
        with_hydra: Whether Hydra's own configuration is in it, under `hydra`.

    Raises:
        PreselError: If the configuration is invalid, an override holds a secret key, or an experiment sweeps
            over settings of which the overrides give no value.
    """
    if isinstance(overrides, str):
        raise PreselError(
            f"the overrides are the text {overrides!r}; give a list of texts: {overrides.split()}"
        )
    if other := [one for one in overrides if not isinstance(one, str)]:
        raise PreselError(f"override {other[0]!r} is no text; write 'key=value'")
    register()
    refuse_keys(overrides)
    check_overrides(overrides)
    try:
        with isolated_hydra(), initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = compose("config", list(overrides), return_hydra_config=True)
    except (*MISTAKES, *UNREADABLE) as error:
        raise PreselError(explain(error, overrides)) from error
    settings: Any = OmegaConf.to_container(config, resolve=False)
    refuse_saved_keys(settings)
    _refuse_sweep(config.hydra, overrides)
    return config if with_hydra else without_hydra(config)


def without_hydra(config: DictConfig) -> DictConfig:
    """Removes Hydra's own configuration."""
    with open_dict(config):
        del config["hydra"]
    return config


def _refuse_sweep(hydra: DictConfig, overrides: Sequence[str]) -> None:
    given = changed_settings(overrides)
    swept = (hydra.sweeper.get("params") or {}) if hydra.mode == RunMode.MULTIRUN else {}
    if missing := [key for key in swept if key not in given]:
        raise PreselError(
            f"the experiment is a sweep over {', '.join(missing)}, and this is about one run; give each a "
            "value, or add hydra.mode=RUN for the defaults"
        )
