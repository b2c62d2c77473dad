"""Configurations as Hydra composes them, and the sentences that explain mistakes in them."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from presel.settings.errors import explain
from presel.settings.options import config_folder
from presel.settings.schema import build, register


def configured(*overrides: str, config: str = "config") -> DictConfig:
    """A configuration, which nothing has checked yet."""
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose(config, overrides=list(overrides))


def mistake(*overrides: str) -> str:
    """What a user is told about wrong overrides."""
    with pytest.raises(Exception) as caught:
        build(configured(*overrides))
    return explain(caught.value, overrides)
