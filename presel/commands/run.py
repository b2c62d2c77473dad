"""`presel run`: one run of the pipeline, and the summary of a sweep."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from presel.console import ConsoleReporter, console
from presel.data.sources import DigitScenes
from presel.errors import PreselError
from presel.evaluation.benchmarks import DigitBenchmarks
from presel.evaluation.external import ExternalBenchmarks
from presel.evaluation.scores import ModelScores, Scores
from presel.instructions.ledger import requested_ids
from presel.instructions.secrets import check_environment
from presel.models.model_files import BUILTIN
from presel.pipeline import Pipeline
from presel.report.summary import print_summary, write_summary
from presel.runs import CONFIG, RunRecord, StageRecord, load_run
from presel.settings.errors import MISTAKES, explain
from presel.settings.schema import TARGETS, build
from presel.settings.usage import drop_foreign, group_of, unused_groups
from presel.storage.provenance import git_commit, versions
from presel.storage.stage import Stage, upstream
from presel.storage.store import Store

_log = logging.getLogger(__name__)


def run(config: DictConfig, overrides: Sequence[str]) -> float | None:
    """Runs one configuration as Hydra's job.

    Args:
        config: The configuration.
        overrides: Those of the command line, which Hydra mixes with those of files.

    Returns:
        The mean score, which a search can maximize; None for a run that ends before the evaluation.

    Raises:
        PreselError: If the configuration or the data is invalid.
    """
    hydra = HydraConfig.get()
    if config.until != "evaluation" and "direction" in hydra.sweeper:
        raise PreselError(f"until={config.until}: a search needs scores; set until=evaluation")
    check_environment(hydra.job.env_set, overrides)
    sweeping = hydra.mode == RunMode.MULTIRUN
    task_overrides = list(hydra.overrides.task)
    if sweeping:
        task_overrides = drop_foreign(config, task_overrides)
        OmegaConf.save(config, Path(hydra.runtime.output_dir) / CONFIG)
        console.print()
        console.print(" ".join(task_overrides), style="bold")
    record = execute(config, Path(hydra.runtime.output_dir), task_overrides, overrides)
    if record.tuned and not sweeping:
        print_summary(record.summary())
    for role, path in record.paths.items():
        what = "training file" if role == "instructions" else path.stem
        console.print(f"{what:<29} {path}")
    console.print(f"{'run, its config and manifest':<29} {record.folder}")
    return record.mean if record.tuned else None


def execute(
    config: DictConfig, folder: Path, overrides: Sequence[str], typed: Sequence[str] | None = None
) -> RunRecord:
    """Runs one configuration and leaves `run.json`, and with an evaluation `summary.csv`, in its folder.

    Args:
        config: The configuration.
        folder: The run's folder.
        overrides: Settings that distinguish this run, for its record.
        typed: What the user typed, where `overrides` may come from files as well.

    Raises:
        PreselError: If the configuration or the data is invalid.
        Paused: If instructions are awaited from people or a batch service.
    """
    typed = overrides if typed is None else typed
    try:
        pipeline = build(config)
    except MISTAKES as error:
        # Explained here, since a sweep's worker process passes on the message but not its cause.
        raise PreselError(explain(error, typed)) from error
    pipeline.provider.check_overrides(typed)
    store = Store(Path(config.paths.store).expanduser(), ConsoleReporter(), config.paths.min_free_gb)
    target = getattr(pipeline, config.until)
    pipeline.check(store, target)
    if built_in := made_for_digits(pipeline, target):
        _log.warning(
            f"made for the built-in digit scenes, not for this pool: {', '.join(built_in)}; choose "
            "others, as in encoder=dinov2_base lvlm=llava15_7b evaluation=llava_json"
        )
    unused = unused_groups(config, pipeline)
    if ignored := [override for override in overrides if group_of(override) in unused]:
        _log.warning(f"nothing in this run reads {', '.join(ignored)}")
    store.ensure(target)
    stages = pipeline.steps(target)
    for role in stages.keys() & set(TARGETS):
        store.verified(stages[role])
    evaluated = config.until == "evaluation"
    record = RunRecord(
        folder=folder,
        strategy=pipeline.strategy.name,
        seed=config.seed,
        overrides=list(overrides),
        unused_groups=unused,
        image_folder=pipeline.source.files(store).images,
        stages={role: _recorded(store, step) for role, step in stages.items()},
        tuned=_tuned_scores(pipeline, store) if evaluated else None,
        baselines=_baseline_scores(pipeline, store) if evaluated else [],
        full_evaluation=store.folder(pipeline.full.evaluation) if evaluated else None,
        versions=versions(),
        git_commit=git_commit(),
    )
    record.write()
    if record.tuned:
        write_summary(folder / "summary.csv", record.summary())
    return record


def _recorded(store: Store, step: Stage[Any]) -> StageRecord:
    return StageRecord(name=step.name, key=step.key, label=step.label, folder=store.folder(step))


def made_for_digits(pipeline: Pipeline, target: Stage[Any]) -> list[str]:
    """The groups whose options are made for the built-in digit scenes, if the pool is another.

    Args:
        pipeline: The run.
        target: The step that it ends with.
    """
    if isinstance(pipeline.source, DigitScenes):
        return []
    # Stages name their models like the configuration groups.
    models = {
        name: value
        for step in upstream(target)
        for name, value in vars(step).items()
        if name in ("lvlm", "encoder", "clip")
    }
    groups = sorted(name for name, model in models.items() if model.path.startswith(BUILTIN))
    return [*groups, "evaluation"] if isinstance(pipeline.benchmark_source, DigitBenchmarks) else groups


class SweepSummary(Callback):
    """Hydra callback: one table over all jobs of a sweep, also written to `summary.csv` in its folder."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Collects the records of the jobs."""
        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob("*/run.json"), key=lambda file: (len(file.parent.name), file))
        records = [record for record in (load_run(file.parent) for file in files) if record.tuned]
        if not records:
            return
        rows = sweep_summary(records)
        write_summary(folder / "summary.csv", rows)
        print_summary(rows)
        console.print(f"summary of the sweep          {folder / 'summary.csv'}")


def sweep_summary(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Rows of all jobs, named by strategy and settings; a baseline that jobs share is listed once."""
    rows: list[dict[str, Any]] = []
    known: dict[str, list[Scores]] = {}
    for record, job in zip(records, _job_names(records), strict=True):
        *baselines, tuned = record.summary()
        for model, row in zip(record.baselines, baselines, strict=True):
            # In a sweep over models the base differs; further ones are named by the first job with them.
            others = known.setdefault(model.name, [])
            if model.scores not in others:
                rows.append(row | {"strategy": f"{model.name} ({job})"} if others else row)
                others.append(model.scores)
        # Jobs that differ in what they do not read are one.
        if (row := tuned | {"strategy": job}) not in rows:
            rows.append(row)
    return rows


def _job_names(records: Sequence[RunRecord]) -> list[str]:
    """Names jobs by their strategy and the overrides that they do not share."""
    common = set.intersection(*(set(record.overrides) for record in records))
    return [
        " ".join(
            [record.strategy]
            + [
                override
                for override in record.overrides
                if override not in common
                and not override.startswith("strategy=")
                and group_of(override) not in record.unused_groups
            ]
        )
        for record in records
    ]


def _tuned_scores(pipeline: Pipeline, store: Store) -> ModelScores:
    # Time and requests include every stage behind the scores; those deleted meanwhile are computed again.
    behind = upstream(pipeline.evaluation)
    for step in behind:
        store.ensure(step)
    return ModelScores(
        pipeline.strategy.name,
        store.load(pipeline.evaluation),
        requested=len(requested_ids(store, pipeline.evaluation)) / len(store.load(pipeline.pool)),
        seconds=sum(store.manifest(step)["wall_seconds"] for step in behind),
    )


def _baseline_scores(pipeline: Pipeline, store: Store) -> list[ModelScores]:
    if isinstance(pipeline.benchmark_source, ExternalBenchmarks):
        return []
    return [
        ModelScores("base", store.load(pipeline.base_evaluation), requested=0.0),
        ModelScores("most frequent", store.load(pipeline.most_frequent)),
    ]
