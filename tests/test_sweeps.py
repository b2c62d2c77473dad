"""Sweeps by other launchers and by a search: they share the store and compute nothing twice."""

import json
from pathlib import Path

import pytest
import yaml

from presel.store import MANIFEST
from tests.conftest import TINY, Program


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_side_by_side_compute_every_stage_once(program: Program, tmp_path: Path, launcher: str) -> None:
    swept = program("run", "-m", f"hydra/launcher={launcher}", "until=selection", "tau.value=0.1,1", *TINY)
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


def test_a_search_without_scores_is_refused(program: Program) -> None:
    result = program("run", "experiment=search", "until=selection")
    assert result.returncode == 2
    assert "until=selection: a search needs scores; set until=evaluation" in result.stderr
