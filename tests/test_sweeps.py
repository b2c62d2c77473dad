"""Sweeps by other launchers and by a search: they share the store and compute nothing twice."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from presel.storage.integrity import MANIFEST
from tests.helpers import OWN_STORE, TINY, Program


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_side_by_side_compute_every_stage_once(program: Program, tmp_path: Path, launcher: str) -> None:
    # The flag may stand anywhere.
    program.succeeds(
        "run", f"hydra/launcher={launcher}", "-m", "until=selection", "tau.value=0.1,1", *TINY, OWN_STORE
    )
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
def test_what_slurm_refuses_is_reported_in_one_sentence(
    in_process: Program, tmp_path: Path, sbatch: str | None, told: str
) -> None:
    for name in ("sbatch", "srun") if sbatch else ():
        (tmp_path / name).write_text(f"#!/bin/sh\n{sbatch}\n")
        (tmp_path / name).chmod(0o755)
    swept = in_process.refuses(
        "run", "-m", "hydra/launcher=submitit_slurm", "tau.value=0.1,1", *TINY, PATH=str(tmp_path)
    )
    assert f"presel: error: hydra/launcher: {told}" in swept


@pytest.mark.slow
def test_a_search_finds_the_best_of_its_trials(in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("run", "experiment=search", "hydra.sweeper.n_trials=2", *TINY)
    (results,) = tmp_path.glob("outputs/runs/*/*/optimization_results.yaml")
    means = []
    for file in results.parent.glob("*/run.json"):
        scores = json.loads(file.read_text())["tuned"]["scores"]
        means.append(sum(scores.values()) / len(scores))
    assert len(means) == 2
    assert yaml.safe_load(results.read_text())["best_value"] == pytest.approx(max(means))


def test_a_search_without_scores_is_refused(in_process: Program) -> None:
    result = in_process("run", "experiment=search", "until=selection")
    assert result.returncode == 2
    assert "until=selection: a search needs scores; set until=evaluation" in result.stderr


def test_a_second_sweep_in_a_folder_counts_its_own_jobs(in_process: Program, tmp_path: Path) -> None:
    sweep = ("run", "-m", "hydra.sweep.dir=sweep", "strategy=random", *TINY)
    in_process.succeeds(*sweep, "seed=0,1")
    # Twice, since jobs that are finished already belong to a sweep that goes on.
    for _ in range(2):
        in_process.succeeds(*sweep, "seed=1")
        assert pd.read_csv(tmp_path / "sweep/summary.csv")["strategy"].tolist()[2:] == ["random"]
    # Both jobs in the folder now have the same settings.
    in_process.succeeds("report", "sweep", "--no-map")
    assert pd.read_csv(tmp_path / "outputs/report/runs.csv")["seed"].tolist() == [1]


def test_an_experiment_that_sweeps_takes_what_only_its_options_have(in_process: Program) -> None:
    """`experiment=ablation_coverage` sweeps over PreCover's settings, which the default strategy lacks."""
    grid = ("run", "experiment=ablation_coverage", "strategy.budgets=size,uniform", "encoder=lvlm", "seed=0")
    result = in_process.succeeds(*grid, "strategy.picks=random", "until=selection", *TINY)
    assert result.stdout.count("selection.parquet") == 2
    result = in_process(*grid, "strategy.pikcs=random")
    assert "there is no setting 'strategy.pikcs' (did you mean 'strategy.picks'?)" in result.stderr


def test_a_wrong_value_in_the_last_job_stops_a_sweep_before_its_first(
    in_process: Program, tmp_path: Path
) -> None:
    swept = in_process.refuses("run", "-m", "until=selection", "tau.value=1,warm", *TINY, OWN_STORE)
    assert "tau.value: Value 'warm' of type 'str' could not be converted to Float" in swept
    assert not (tmp_path / "outputs" / "store").exists()
