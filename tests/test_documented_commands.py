"""Every command of the pages that starts a run composes, and so does every job of its sweep."""

import shlex
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import open_dict

from presel.settings.options import config_folder, config_folders
from presel.settings.overrides import check_overrides, is_sweep
from presel.settings.schema import build, register
from presel.settings.sweeps import drop_settings_of_other_options, spread_over_jobs
from tests.documents import blocks

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("experiments/**/*.md"))]


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of `presel run` and `presel doctor` in a page's blocks, where they are given in full."""
    for _, text in blocks(page):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.lstrip().startswith("presel ") else []
            whole = words[1:2] in (["run"], ["doctor"]) and "…" not in words and "--help" not in words
            if whole and all((ROOT / folder).is_dir() for folder in config_folders(words)):
                yield words[2:]


DOCUMENTED = [
    pytest.param(arguments, id=f"{page.relative_to(ROOT)}:{' '.join(arguments)[:80]}")
    for page in PAGES
    for arguments in commands(page)
]


def jobs_of(overrides: list[str], of_experiment: Mapping[str, Any]) -> list[list[str]]:
    """The overrides of as many jobs as it takes to use every value of a sweep once."""
    parser = OverridesParser.create()
    given = {parsed.key_or_group: parsed for parsed in parser.parse_overrides(overrides)}
    params = parser.parse_overrides([f"{key}={value}" for key, value in of_experiment.items()])
    varied = []
    for parsed in [*(one for one in params if one.key_or_group not in given), *given.values()]:
        key = str(parsed.input_line).partition("=")[0]
        # A search draws its values, which has no end.
        values = parsed.sweep_string_iterator() if parsed.is_choice_sweep() else []
        plain = [] if parsed.is_sweep_override() else [str(parsed.input_line)]
        if written := [f"{key}={value}" for value in values] or plain:
            varied.append(written)
    return [
        list(job) for job in zip(*(islice(cycle(one), max(map(len, varied))) for one in varied), strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", DOCUMENTED)
def test_a_documented_command_composes(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # The modules of a page's own strategies.
    monkeypatch.syspath_prepend(ROOT)
    register()
    check_overrides(arguments)
    folders = config_folders(arguments)
    flags = {"-m", "--config-dir", *map(str, folders)}
    overrides = [one for one in spread_over_jobs(arguments) if one not in flags]
    search_path = create_config_search_path(str(config_folder()))
    for folder in folders:
        search_path.prepend("command-line", f"file://{ROOT / folder}", "schema")
    loader = ConfigLoaderImpl(search_path)
    jobs = [overrides]
    if is_sweep(arguments):
        # Hydra composes what does not vary before any job.
        whole = loader.load_configuration("config", overrides, RunMode.MULTIRUN)
        jobs = jobs_of(overrides, whole.hydra.sweeper.get("params") or {})
    for job in jobs:
        config = loader.load_configuration("config", job, RunMode.RUN)
        with open_dict(config):
            del config["hydra"]
        drop_settings_of_other_options(config, job, arguments)
        build(config)
