"""One run of the pipeline: from a configuration to a record of its results."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from presel.console import ConsoleReporter
from presel.data.sources import DigitScenes
from presel.data.validation import DigitValidation
from presel.errors import PreselError
from presel.evaluation.benchmarks import Benchmarks, DigitBenchmarks
from presel.evaluation.external import ExternalBenchmarks
from presel.evaluation.scores import ModelScores
from presel.instructions.ledger import requested_ids
from presel.models.model_files import BUILTIN, digits_warning
from presel.pipeline import Pipeline
from presel.report.summary import write_summary
from presel.runs import RunRecord, StageRecord
from presel.settings.errors import MISTAKES, explain
from presel.settings.saved import save_configuration
from presel.settings.schema import TARGETS, build
from presel.settings.usage import sets_any_of, unused
from presel.storage.provenance import git_commit, versions
from presel.storage.run_folder import RUN_FILE
from presel.storage.stage import Stage, upstream
from presel.storage.store import Store

if TYPE_CHECKING:
    from hydra.conf import HydraConf

_log = logging.getLogger(__name__)

# Options of each group that are not made for the built-in digit scenes.
_FOR_PHOTOGRAPHS = {
    "clip": "clip_vit_l14_336",
    "encoder": "dinov2_base",
    "evaluation": "llava_json",
    "lvlm": "llava15_7b",
    "validation": "llava_json",
}


def execute(
    config: DictConfig,
    folder: Path,
    overrides: Sequence[str],
    typed: Sequence[str],
    hydra: "HydraConf | None" = None,
) -> RunRecord:
    """Runs one configuration and leaves `run.json`, and with an evaluation `summary.csv`, in its folder.

    The record and the configuration of an earlier run in the folder are replaced once all is checked.

    Args:
        config: The configuration.
        folder: The run's folder.
        overrides: Settings that distinguish this run, for its record.
        typed: Those of them that the user typed; others come from files.
        hydra: Hydra's own configuration, to be saved too.

    Raises:
        PreselError: If the configuration or the data is invalid.
        Paused: If instructions are awaited from people or a batch service.
    """
    try:
        pipeline = build(config)
    except MISTAKES as error:
        # Explained here, since a sweep's worker process passes on the message but not its cause.
        raise PreselError(explain(error, typed)) from error
    pipeline.provider.check_overrides(typed)
    store = Store(
        Path(config.paths.store).expanduser(),
        ConsoleReporter(),
        config.paths.min_free_gb,
        pipeline.runtime.executor,
    )
    try:
        target = pipeline.target(config.until)
        pipeline.check(store, target)
        if (folder / RUN_FILE).exists():
            (folder / RUN_FILE).unlink()
            save_configuration(folder, config, hydra)
        return _executed(config, pipeline, target, store, folder, overrides)
    finally:
        store.executor.close()


def _executed(
    config: DictConfig,
    pipeline: Pipeline,
    target: Stage[Any],
    store: Store,
    folder: Path,
    overrides: Sequence[str],
) -> RunRecord:
    if built_in := made_for_digits(pipeline, target):
        others = " ".join(f"{group}={_FOR_PHOTOGRAPHS[group]}" for group in built_in)
        _log.warning(digits_warning(built_in, f"choose others, as in {others}"))
    if shared := benchmark_images_in_pool(pipeline, store, target):
        _log.warning(
            f"{shared:,} images of the benchmarks are in the pool too, so that scores may be too high; "
            "`presel doctor` lists them, pool.exclude leaves them out"
        )
    not_read = unused(config, pipeline)
    if ignored := [override for override in overrides if sets_any_of(override, not_read)]:
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
        unused=not_read,
        image_folder=pipeline.source.files(store).images,
        left_out=pipeline.images.left_out(store),
        stages={
            role: StageRecord(name=step.name, key=step.key, label=step.label, folder=store.folder(step))
            for role, step in stages.items()
        },
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


def made_for_digits(pipeline: Pipeline, target: Stage[Any]) -> list[str]:
    """The groups whose options are made for the built-in digit scenes, if a run's pool is another."""
    if isinstance(pipeline.source, DigitScenes):
        return []
    held = [item for step in upstream(target) for item in vars(step).items()]
    # Stages name their models like the configuration groups.
    models = {name: value for name, value in held if name in ("lvlm", "encoder", "clip")}
    groups = sorted(
        name for name, model in models.items() if str(getattr(model, "path", "")).startswith(BUILTIN)
    )
    for group, kind in (("evaluation", DigitBenchmarks), ("validation", DigitValidation)):
        groups += [group] if any(isinstance(value, kind) for _, value in held) else []
    return groups


def benchmark_images_in_pool(pipeline: Pipeline, store: Store, target: Stage[Any]) -> int:
    """Number of benchmark images that the pool shows too, byte by byte; the built-in ones show none."""
    source = pipeline.benchmark_source
    if not isinstance(source, Benchmarks) or source.stages or pipeline.benchmarks not in upstream(target):
        return 0
    asked, pool = (stage.all_images(store)["content"] for stage in (pipeline.benchmarks, pipeline.images))
    return int(asked[asked.isin(pool)].nunique())


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
