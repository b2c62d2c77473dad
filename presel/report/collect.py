"""Reading finished runs back."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from presel.data.checks import check_file
from presel.errors import PreselError
from presel.evaluation.scores import Scores, mean_score, relative_score
from presel.storage.files import read_json, read_table
from presel.storage.integrity import HASHED_BYTES, MANIFEST, check_result

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
    "clip_features",
    "multimodal_features",
    "self_filter",
    "selection",
)
# What tells the runs of one setting apart, and what leaves their result as it is.
_NO_SETTINGS = ("seed", "until", "paths", "logger", "executor")
# Stages whose files are read here; of the others only manifests are.
_READ = ("pool", "selection", "relevance", "evaluation")
# The strategy is named anyway, and what an experiment sets is in the settings.
_NOT_NAMED = ("strategy", "experiment")
_WHAT_TO_NAME = "name folders of runs or sweeps that ended with until=evaluation"


class _Row(BaseModel):
    model_config = ConfigDict(strict=True)

    scores: dict[str, float]
    requested: float | None


class _Report(BaseModel):
    """What is read of a `run.json`."""

    model_config = ConfigDict(strict=True)

    strategy: str
    seed: int
    overrides: list[str]
    stages: dict[str, str]
    images: str
    full_evaluation: str | None
    rows: list[_Row]


@dataclass(frozen=True)
class Run:
    """A finished run with its evaluation.

    Attributes:
        folder: Where its `run.json` lies.
        strategy: Who chose.
        seed: The run's seed.
        overrides: Settings given on the command line that tell this run from those of its strategy.
        settings: Its configuration, but for the seed and what leaves the result as it is.
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
    settings: dict[str, Any]
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
        table = read_table(file, "id", "turn", "benchmark", "score")
        by_benchmark = table.set_index(["id", "turn"]).sort_index().groupby("benchmark")["score"]
        return {str(name): scores for name, scores in by_benchmark}

    @cached_property
    def selection(self) -> pd.DataFrame:
        """Table of all images of the pool, as the strategy left it."""
        return read_table(self._stage("selection") / "selection.parquet", "id", "task", "selected")

    @property
    def chosen(self) -> pd.Series:
        """Ids of the chosen images."""
        return self.selection["id"][self.selection["selected"]]

    @cached_property
    def relevance(self) -> pd.DataFrame | None:
        """Losses of the reference samples with their tasks, or None where the strategy needs none.

        Raises:
            PreselError: If there is another sample than those of the pool.
        """
        folder = self.stages.get("relevance (reference)")
        if folder is None:
            return None
        losses = read_table(folder / "relevance.parquet", "id", "loss_with_question", "loss_without_question")
        foreign = losses["id"][~losses["id"].isin(self.selection["id"])]
        if len(foreign):
            raise PreselError(
                f"{self.folder}: sample {foreign.iloc[0]!r} of its reference set is not in its pool; use "
                "results of your own runs only"
            )
        return losses.merge(self.selection[["id", "task"]], on="id")

    @cached_property
    def image_paths(self) -> dict[str, str]:
        """Path of every image of the pool by its id, relative to the image folder."""
        pool = read_table(self.stages["pool"] / "pool.parquet", "id", "image")
        return dict(zip(pool["id"], pool["image"], strict=True))

    @property
    def result(self) -> Path:
        """Folder of its evaluation, by which runs with the same result are known."""
        return self._stage("evaluation").resolve()

    @cached_property
    def budget(self) -> float:
        """Images that could be chosen, as a share of the pool."""
        return float(self._manifest(self._stage("selection"))["measured"]["budget"] / len(self.selection))

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """What runs must have in common, beside the budget, to be held against each other."""
        model, instructions, evaluation = (
            self._manifest(folder)["settings"]
            for folder in (
                self.stages["model (selection)"],
                self.stages["instructions (selection)"],
                self._stage("evaluation"),
            )
        )
        return {
            "pool": self.stages["pool"].name,
            "instructions": instructions["provider"],
            "tuning": {name: model[name] for name in model.keys() - {"instructions", "seed"}},
            "evaluation": {name: evaluation[name] for name in evaluation.keys() - {"tuned", "model"}},
        }

    @property
    def selection_seconds(self) -> float:
        """Time that everything behind the choice took, computed once and for this run alone."""
        return sum(self._seconds(label) for label in self.stages if label.startswith(_SELECTING))

    @property
    def tuning_seconds(self) -> float:
        """Time that the final tuning took."""
        return self._seconds("model (selection)")

    @property
    def seconds(self) -> float:
        """Time of selection and tuning together."""
        return self.selection_seconds + self.tuning_seconds

    def _seconds(self, label: str) -> float:
        return float(self._manifest(self.stages[label])["wall_seconds"])

    def _manifest(self, folder: Path) -> dict[str, Any]:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        return manifest

    def _stage(self, name: str) -> Path:
        return self.stages[f"{name} ({self.strategy})"]


def collect(folders: Sequence[Path]) -> list[Run]:
    """Reads every evaluated run at or under the folders.

    Raises:
        PreselError: If there is none, a folder holds no run at all, or a run's files are gone or damaged.
    """
    runs = [_run(folder, report) for folder, report in _finished(folders).items() if report["rows"]]
    if not runs:
        raise PreselError(f"no evaluated run under {', '.join(map(str, folders))}; {_WHAT_TO_NAME}")
    return runs


def left_out(folders: Sequence[Path]) -> list[str]:
    """Says which runs at or under the folders `collect` leaves out, and why."""
    finished = _finished(folders)
    started = {hydra.parent for folder in folders for hydra in folder.rglob(".hydra")}
    unscored = {folder for folder, report in finished.items() if not report["rows"]}
    return [
        f"Left out: {len(runs)} that {why}, such as {min(runs)}."
        for runs, why in (
            (started - finished.keys(), "did not finish"),
            (unscored, "ended before the evaluation"),
        )
        if runs
    ]


def _finished(folders: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """What each finished run says of itself, by its folder."""
    files: set[Path] = set()
    for folder in folders:
        found = {file for file in folder.rglob("run.json") if file.is_file()}
        if not found:
            raise PreselError(f"{folder}: no finished run at or under it; {_WHAT_TO_NAME}")
        files |= found
    # Jobs of a sweep lie in folders 0, 1, … 10.
    in_order = sorted(files, key=lambda file: (file.parent.parent, len(file.parent.name), file))
    return {file.parent: _report(file) for file in in_order}


def _report(file: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = read_json(file)
    except (ValueError, RecursionError) as error:
        raise PreselError(f"{file}: no whole JSON file ({error}); run the same again") from error
    try:
        _Report.model_validate(report)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"])) or "object"
        raise PreselError(
            f"{file}: has no '{key}' of the right kind, as of another version; run the same again"
        ) from None
    return report


def _config(file: Path) -> dict[str, Any]:
    """The configuration that a run left."""
    check_file(file)
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(file))
        return {str(name): value for name, value in config.items()}
    except (YAMLError, OmegaConfBaseException, AttributeError, ValueError, RecursionError):
        raise PreselError(f"{file}: no configuration can be read from it; run the same again") from None


def _run(folder: Path, report: dict[str, Any]) -> Run:
    tuned = report["rows"][-1]
    stages = {label: Path(stage) for label, stage in report["stages"].items()}
    gone = [label for label, stage in stages.items() if not (stage / MANIFEST).exists()]
    if gone:
        raise PreselError(
            f"{folder}: the result of stage '{gone[0]}' is gone from {stages[gone[0]]}; run the same again, "
            "or leave this run out"
        )
    for label, stage in stages.items():
        check_result(stage, HASHED_BYTES if label.startswith(_READ) else 0)
    full = Path(report["full_evaluation"])
    whole = (full / MANIFEST).exists()
    if whole:
        check_result(full)
    config = _config(folder / ".hydra" / "config.yaml")
    return Run(
        folder=folder,
        strategy=report["strategy"],
        seed=report["seed"],
        overrides=frozenset(
            override
            for override in report["overrides"]
            if _names_a_setting(override.lstrip("+").partition("=")[0])
        ),
        settings={name: value for name, value in config.items() if name not in _NO_SETTINGS},
        scores=tuned["scores"],
        full=read_json(full / "scores.json") if whole else None,
        requested=tuned["requested"],
        stages=stages,
        images=Path(report["images"]),
    )


def _names_a_setting(key: str) -> bool:
    return key not in _NOT_NAMED and key.partition(".")[0] not in _NO_SETTINGS


def by_setting(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Groups runs that differ by their seed alone; a group is named by its strategy and what sets it apart.

    The same result, reached by two runs, counts once.

    Raises:
        PreselError: If one setting has two results with one seed, or two settings have one name.
    """
    runs = list(runs)
    common = frozenset.intersection(*(run.overrides for run in runs))
    groups: dict[str, list[Run]] = {}
    for run in runs:
        name = " ".join([run.strategy, *sorted(run.overrides - common)])
        name = next((known for known, group in groups.items() if group[0].settings == run.settings), name)
        groups.setdefault(name, []).append(run)
    return {name: _one_a_seed(name, group) for name, group in groups.items()}


def _one_a_seed(name: str, group: Sequence[Run]) -> list[Run]:
    for run in group[1:]:
        if differ := _differences(group[0].settings, run.settings) or _differences(
            group[0].conditions, run.conditions
        ):
            raise PreselError(
                f"{group[0].folder} and {run.folder} are both '{name}', but differ in their {differ[0]}; "
                "report on them one by one"
            )
    by_seed: dict[int, Run] = {}
    for run in group:
        known = by_seed.setdefault(run.seed, run)
        if known.result != run.result:
            raise PreselError(
                f"{known.folder} and {run.folder} are both '{name}' with seed {run.seed}; name one of them"
            )
    return [by_seed[seed] for seed in sorted(by_seed)]


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names under which both have something, and not the same."""
    return [name for name in first if name in second and first[name] != second[name]]


def counterpart(runs: Sequence[Run], strategy: str, groups: Mapping[str, Sequence[Run]]) -> list[Run]:
    """Finds a strategy's runs that a setting's may be held against.

    Args:
        runs: Runs of the setting.
        strategy: The other strategy.
        groups: Runs of each setting, as `by_setting` gives them.

    Returns:
        Its runs under the same conditions and of the same budget, which does not count where one of both
        takes the whole pool; one a seed. None at all where there are several budgets to choose between.
    """
    found = [
        others
        for others in groups.values()
        if others[0].strategy == strategy
        and others[0].conditions == runs[0].conditions
        and (others[0].budget == runs[0].budget or 1 in (others[0].budget, runs[0].budget))
    ]
    if len({others[0].budget for others in found}) > 1:
        return []
    # Settings that make no difference to this strategy may have split its runs.
    return list({run.seed: run for others in found for run in others}.values())
