"""Records of runs that left no more than a test asks for."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from presel.evaluation.scores import ModelScores
from presel.runs import RunRecord, StageRecord
from tests.chosen import finished


def run(folder: Path, strategy: str, seed: int, answers: dict[str, list[float]]) -> RunRecord:
    """A run that left nothing but its answers."""
    where = folder / f"{strategy} {seed}"
    where.mkdir()
    rows = [
        {"benchmark": benchmark, "id": f"{number:03}", "turn": 0, "score": score}
        for benchmark, scores in answers.items()
        for number, score in enumerate(scores)
    ]
    pd.DataFrame(rows).sample(frac=1, random_state=seed).to_parquet(where / "predictions.parquet")
    scores = {benchmark: float(np.mean(scores)) for benchmark, scores in answers.items()}
    return recorded(where, strategy, seed, scores, {"evaluation": finished(where)})


def recorded(
    folder: Path,
    strategy: str,
    seed: int = 0,
    scores: dict[str, float] | None = None,
    stages: dict[str, StageRecord] | None = None,
    **more: Any,
) -> RunRecord:
    """A run's record, with what a test does not ask for left empty; its configuration is its overrides."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    overrides = more.pop("overrides", [])
    OmegaConf.save(
        OmegaConf.from_dotlist([f"strategy={strategy}", *overrides]), folder / ".hydra/config.yaml"
    )
    return RunRecord(
        unused=[],
        folder=folder,
        strategy=strategy,
        seed=seed,
        overrides=overrides,
        image_folder=folder,
        stages=stages or {},
        tuned=ModelScores(strategy, scores, requested=0.15, seconds=1.0) if scores else None,
        baselines=more.pop("baselines", []),
        versions={},
        **more,
    )


def tuned(
    folder: Path,
    strategy: str,
    *overrides: str,
    budget: int = 3,
    seed: int = 0,
    tune: str = "llava15",
    score: float = 0.5,
    **more: Any,
) -> RunRecord:
    """A run on a pool of 20 that left what says under which conditions it was, and no answers."""
    where = folder / f"{strategy} {' '.join(overrides)} {seed} {tune}"
    selection = where / "selection"
    selection.mkdir(parents=True)
    pool = pd.DataFrame({"id": [str(number) for number in range(20)], "task": "vqa", "selected": True})
    pool.to_parquet(selection / "selection.parquet")
    stages = {
        "images": finished(folder / "images"),
        "selection": finished(selection, {"seed": seed, "strategy": {"class": strategy}}, budget=budget),
        "instructions": finished(where / "instructions", {"chosen": strategy, "provider": "annotations"}),
        "model": finished(where / "model", {"instructions": strategy, "seed": seed, "tune": tune}),
        "evaluation": finished(where / "evaluation", {"tuned": strategy, "benchmarks": "vqa"}),
    }
    return recorded(where, strategy, seed, {"vqa": score}, stages, overrides=list(overrides), **more)
