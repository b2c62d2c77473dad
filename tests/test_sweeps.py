"""Sweeps by other launchers and by a search: they share the store and compute nothing twice."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from presel.settings.errors import explain
from presel.settings.paths import config_folder
from presel.settings.schema import register
from presel.settings.sweep import SweepLoader
from presel.storage.integrity import MANIFEST
from tests.conftest import TINY, Program

Loaders = tuple[ConfigLoaderImpl, SweepLoader, DictConfig]


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_side_by_side_compute_every_stage_once(program: Program, tmp_path: Path, launcher: str) -> None:
    # The flag may stand anywhere.
    swept = program("run", f"hydra/launcher={launcher}", "-m", "until=selection", "tau.value=0.1,1", *TINY)
    assert swept.returncode == 0, swept.stderr
    made: dict[str, int] = {}
    for file in tmp_path.glob(f"outputs/store/*/*/{MANIFEST}"):
        made[file.parts[-3]] = made.get(file.parts[-3], 0) + 1
    assert made == {
        "scenes": 1,
        "pool": 1,
        "reference": 1,
        "instructions": 1,
        "model": 1,
        "relevance": 1,
        "features": 1,
        "clusters": 1,
        "centrality": 1,
        "selection": 2,
    }


@pytest.mark.parametrize(
    ("sbatch", "told"),
    [(None, "Could not detect"), ("echo 'invalid partition: gpu' >&2; exit 1", "invalid partition: gpu")],
)
def test_what_slurm_refuses_is_told_in_one_sentence(
    program: Program, tmp_path: Path, sbatch: str | None, told: str
) -> None:
    for name in ("sbatch", "srun") if sbatch else ():
        (tmp_path / name).write_text(f"#!/bin/sh\n{sbatch}\n")
        (tmp_path / name).chmod(0o755)
    swept = program(
        "run", "-m", "hydra/launcher=submitit_slurm", "tau.value=0.1,1", *TINY, PATH=str(tmp_path)
    )
    assert swept.returncode == 2
    assert "Traceback" not in swept.stderr
    assert f"presel: error: hydra/launcher: {told}" in swept.stderr


def test_a_search_finds_the_best_of_its_trials(program: Program, tmp_path: Path) -> None:
    searched = program("run", "experiment=search", "hydra.sweeper.n_trials=2", *TINY)
    assert searched.returncode == 0, searched.stderr
    (results,) = tmp_path.glob("outputs/runs/*/*/optimization_results.yaml")
    means = []
    for file in results.parent.glob("*/run.json"):
        scores = json.loads(file.read_text())["rows"][-1]["scores"]
        means.append(sum(scores.values()) / len(scores))
    assert len(means) == 2
    assert yaml.safe_load(results.read_text())["best_value"] == pytest.approx(max(means))


def test_a_search_without_scores_is_refused(in_process: Program) -> None:
    result = in_process("run", "experiment=search", "until=selection")
    assert result.returncode == 2
    assert "until=selection: a search needs scores; set until=evaluation" in result.stderr


@pytest.fixture
def loaders() -> Iterator[Loaders]:
    """Hydra's loader, that of sweeps, and the configuration that a sweep starts from."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        plain = GlobalHydra.instance().config_loader()
        assert isinstance(plain, ConfigLoaderImpl)
        own = ["hydra.sweep.dir=swept", "hydra.job.config.override_dirname.exclude_keys=[seed]"]
        master = plain.load_configuration("config", [*own, "seed=1,2"], RunMode.MULTIRUN)
        yield plain, SweepLoader(plain.get_search_path()), master


def test_a_job_is_configured_as_by_hydra(loaders: Loaders) -> None:
    plain, shared, master = loaders
    jobs = [
        ["tau.value=0.5", "seed=1"],
        ["tau.value=1", "seed=1"],
        ["seed=1", "tau.value=null"],
        ["strategy.pick=random", "strategy=presel"],
        ["neighbors.k=3", "strategy=random", "experiment=budget", "pool.size=3", "pool.size=4"],
        ["tau.value=${neighbors.k}", "paths.store='a,b'", "lvlm=hf", "lvlm.path=hub/model"],
        ["pool.size=5", "pool={size: 6}"],
        ["pool={size: 6}", "pool.size=5"],
        ["+pool.new=[1,2]", "pool.new=3", "~pool.seed"],
        ["++pool.size=3", "hydra.job.name=other", "pool.size=4"],
        ["tau.value=0.5", "seed=1"],
    ]
    for job in jobs:
        expected = plain.load_sweep_config(master, job)
        found = shared.load_sweep_config(master, job)
        assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)
        assert OmegaConf.is_struct(found)
        # What one job does to its configuration is not seen by the next.
        found.seed = 9


@pytest.mark.parametrize(
    "job",
    [
        ["tau.valu=1"],
        ["neighbors.k=3", "tau.value=warm"],
        ["pool.new=1", "+pool.new=2"],
        ["strategy=nobody", "tau.value=1"],
        ["no.such=1"],
    ],
)
def test_a_job_is_refused_as_by_hydra(loaders: Loaders, job: list[str]) -> None:
    plain, shared, master = loaders
    with pytest.raises(HydraException) as expected:
        plain.load_sweep_config(master, job)
    with pytest.raises(type(expected.value)) as found:
        shared.load_sweep_config(master, job)
    assert explain(found.value) == explain(expected.value)


def test_a_wrong_value_in_the_last_job_stops_a_sweep_before_its_first(
    in_process: Program, tmp_path: Path
) -> None:
    swept = in_process("run", "-m", "until=selection", "tau.value=1,warm", *TINY)
    assert swept.returncode == 2
    assert "tau.value: Value 'warm' of type 'str' could not be converted to Float" in swept.stderr
    assert not (tmp_path / "outputs" / "store").exists()
