"""Reading finished runs back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from presel.errors import PreselError
from presel.files import read_json
from presel.store import MANIFEST
from presel.summary import Scores, mean_score, relative_score

# Stages whose time is spent on choosing; the others prepare data, or tune and evaluate the choice.
_SELECTING = (
    "reference",
    "instructions (reference)",
    "instructions (whole pool)",
    "model (reference)",
    "relevance",
    "features",
    "tasks",
    "clusters",
    "centrality",
    "clip_scores",
    "multimodal_features",
    "self_filter",
    "selection",
)


@dataclass(frozen=True)
class Run:
    """A finished run with its evaluation.

    Attributes:
        folder: Where its `run.json` lies.
        strategy: Who chose.
        seed: The run's seed.
        overrides: Settings given on the command line, but for strategy and seed.
        scores: Score by benchmark, 0 to 1.
        full: The same run's scores on all instructions, or None where it was not run.
        requested: Share of the pool whose instructions were requested, by the ledger.
        stages: Folder of each stage by its label.
        images: Folder of the pool's images.
    """

    folder: Path
    strategy: str
    seed: int
    overrides: frozenset[str]
    scores: Scores
    full: Scores | None
    requested: float
    stages: dict[str, Path]
    images: Path

    @property
    def mean(self) -> float:
        """Unweighted mean over the benchmarks."""
        return mean_score(self.scores)

    @property
    def relative(self) -> float | None:
        """Rel., see `relative_score`."""
        return None if self.full is None else relative_score(self.scores, self.full)

    @cached_property
    def answers(self) -> dict[str, pd.Series]:
        """Score of every answer by benchmark, by id and turn; empty where another program evaluated."""
        file = self._stage("evaluation") / "predictions.parquet"
        if not file.exists():
            return {}
        table = pd.read_parquet(file)
        by_benchmark = table.set_index(["id", "turn"]).sort_index().groupby("benchmark")["score"]
        return {str(name): scores for name, scores in by_benchmark}

    @cached_property
    def selection(self) -> pd.DataFrame:
        """Table of all images of the pool, as the strategy left it."""
        return pd.read_parquet(self._stage("selection") / "selection.parquet")

    @property
    def chosen(self) -> pd.Series:
        """Ids of the chosen images."""
        return self.selection["id"][self.selection["selected"]]

    @cached_property
    def relevance(self) -> pd.DataFrame | None:
        """Losses of the reference samples, or None where the strategy needs none."""
        folder = self.stages.get("relevance (reference)")
        return None if folder is None else pd.read_parquet(folder / "relevance.parquet")

    @cached_property
    def image_files(self) -> dict[str, Path]:
        """File of every image of the pool by its id."""
        pool = pd.read_parquet(self.stages["pool"] / "pool.parquet")
        return {name: self.images / image for name, image in zip(pool["id"], pool["image"], strict=True)}

    @property
    def selection_seconds(self) -> float:
        """Time that everything behind the choice took, computed once and for this run alone."""
        return sum(self._seconds(label) for label in self.stages if label.startswith(_SELECTING))

    @property
    def tuning_seconds(self) -> float:
        """Time that the final tuning took."""
        return self._seconds("model (selection)")

    def _seconds(self, label: str) -> float:
        return float(read_json(self.stages[label] / MANIFEST)["wall_seconds"])

    def _stage(self, name: str) -> Path:
        return self.stages[f"{name} ({self.strategy})"]


def collect(folders: Sequence[Path]) -> list[Run]:
    """Reads every run at or under the folders.

    Raises:
        PreselError: If there is none that was evaluated, or a stage's result is gone.
    """
    files = {file for folder in folders for file in folder.rglob("run.json")}
    # Jobs of a sweep lie in folders 0, 1, … 10.
    in_order = sorted(files, key=lambda file: (file.parent.parent, len(file.parent.name), file))
    runs = [_read(file) for file in in_order]
    evaluated = [run for run in runs if run is not None]
    if not evaluated:
        raise PreselError(
            f"no evaluated run under {', '.join(map(str, folders))}; name folders of runs or sweeps that "
            "ended with until=evaluation"
        )
    return evaluated


def _read(file: Path) -> Run | None:
    report: dict[str, Any] = read_json(file)
    if not report["rows"]:
        return None
    tuned = report["rows"][-1]
    stages = {label: Path(folder) for label, folder in report["stages"].items()}
    gone = [label for label, folder in stages.items() if not (folder / MANIFEST).exists()]
    if gone:
        raise PreselError(
            f"{file}: the result of stage '{gone[0]}' is gone from {stages[gone[0]]}; run the same again, or "
            "leave this run out"
        )
    full = Path(report["full_evaluation"]) / "scores.json"
    return Run(
        folder=file.parent,
        strategy=report["strategy"],
        seed=report["seed"],
        overrides=frozenset(
            override
            for override in report["overrides"]
            if not override.lstrip("+").startswith(("strategy=", "seed=", "experiment="))
        ),
        scores=tuned["scores"],
        full=read_json(full) if full.exists() else None,
        requested=tuned["requested"],
        stages=stages,
        images=Path(report["images"]),
    )


def by_setting(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Groups runs that differ by their seed alone; a group is named by its strategy and what sets it apart.

    Raises:
        PreselError: If one setting was run twice with one seed.
    """
    runs = list(runs)
    common = frozenset.intersection(*(run.overrides for run in runs))
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(" ".join([run.strategy, *sorted(run.overrides - common)]), []).append(run)
    for name, group in groups.items():
        group.sort(key=lambda run: run.seed)
        for first, second in pairwise(group):
            if first.seed == second.seed:
                raise PreselError(
                    f"{first.folder} and {second.folder} are both '{name}' with seed {first.seed}; name one "
                    "of them"
                )
    return groups
