"""One run of the pipeline, and the summary of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from presel.console import ConsoleReporter, console
from presel.data.sources import DigitScenes
from presel.errors import PreselError
from presel.evaluation.benchmarks import DigitBenchmarks
from presel.evaluation.external import ExternalBenchmarks
from presel.evaluation.scores import Row, Scores, print_table, relative_score, write_csv
from presel.instructions.ledger import requested_ids
from presel.instructions.secrets import check_environment
from presel.models.model_files import BUILTIN
from presel.pipeline import Pipeline
from presel.settings.errors import MISTAKES, explain
from presel.settings.schema import build
from presel.stages.external_evaluation import ExternalEvaluationStage
from presel.storage.files import read_json, write_json
from presel.storage.integrity import MANIFEST, check_result
from presel.storage.provenance import git_commit, versions
from presel.storage.stage import Stage, upstream
from presel.storage.store import Store

# The steps a run can end with, and what each leaves for the user.
STEPS = {
    "selection": ("selection", "selection.parquet"),
    "instructions": ("training file", "train.json"),
    "model": ("adapter", "adapter"),
    "merged": ("model", "model"),
    "evaluation": ("predictions", "predictions.parquet"),
}


def run(config: DictConfig, overrides: Sequence[str]) -> float | None:
    """Runs one configuration and leaves `run.json`, and with an evaluation `summary.csv`, in its folder.

    Args:
        config: The configuration.
        overrides: Those of the command line, which Hydra mixes with those of files.

    Returns:
        The mean score, which a search can maximize; None for a run that ends before the evaluation.

    Raises:
        PreselError: If the configuration or the data is not as it should be.
    """
    check_step(config.until)
    try:
        pipeline = build(config)
    except MISTAKES as error:
        # Told here, because a sweep's worker process hands on the message and not what lies behind it.
        raise PreselError(explain(error, overrides)) from error
    check_environment(HydraConfig.get().job.env_set, overrides)
    pipeline.provider.check_overrides(overrides)
    evaluated = config.until == "evaluation"
    if not evaluated and "direction" in HydraConfig.get().sweeper:
        raise PreselError(f"until={config.until}: a search needs scores; set until=evaluation")
    store = Store(Path(config.paths.store).expanduser(), ConsoleReporter(), config.paths.min_free_gb)
    folder = Path(HydraConfig.get().runtime.output_dir)
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    if sweeping:
        console.print()
        console.print(" ".join(HydraConfig.get().overrides.task), style="bold")

    target = getattr(pipeline, config.until)
    pipeline.check(store, target)
    if built_in := made_for_digits(pipeline, target):
        console.notice(
            f"made for the built-in digit scenes, not for this pool: {', '.join(built_in)}; choose "
            "others, as in encoder=dinov2_base lvlm=llava15_7b evaluation=llava_json"
        )
    store.ensure(target)
    shown = _shown(pipeline, target)
    for step in shown.values():
        store.verified(step)
    rows = _rows(pipeline, store) if evaluated else []
    report: dict[str, Any] = {
        "strategy": pipeline.strategy.name,
        "overrides": list(HydraConfig.get().overrides.task),
        "seed": config.seed,
        "stages": {step.label: str(store.folder(step)) for step in upstream(target)},
        "images": str(pipeline.source.files(store).images),
        "full_evaluation": str(store.folder(pipeline.full.evaluation)) if evaluated else None,
        "rows": [asdict(row) for row in rows],
        "versions": versions(),
        "git_commit": git_commit(),
    }
    write_json(folder / "run.json", report)
    if rows:
        rows = _with_relative(rows, store.folder(pipeline.full.evaluation))
        write_csv(folder / "summary.csv", rows)
    if rows and not sweeping:
        print_table(rows)
    _print_paths(shown, store, folder)
    return rows[-1].mean if rows else None


def made_for_digits(pipeline: Pipeline, target: Stage[Any]) -> list[str]:
    """The groups that a run takes from the built-in digit scenes although its pool does not.

    Args:
        pipeline: The run.
        target: The step that it is to end with.
    """
    if isinstance(pipeline.source, DigitScenes):
        return []
    # Stages call their models as the groups of the configuration are called.
    models = {
        name: value
        for step in upstream(target)
        for name, value in vars(step).items()
        if name in ("lvlm", "encoder", "clip")
    }
    groups = sorted(name for name, model in models.items() if model.path.startswith(BUILTIN))
    return [*groups, "evaluation"] if isinstance(pipeline.benchmark_source, DigitBenchmarks) else groups


def check_step(until: str) -> None:
    """Makes sure that a run can end there.

    Raises:
        PreselError: If there is no such step.
    """
    if until not in STEPS:
        raise PreselError(f"until={until}: no such step; choose one of {', '.join(STEPS)}")


class SweepSummary(Callback):
    """Hydra callback: one table over all jobs of a sweep, as `summary.csv` in the sweep's folder too."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Collects what the jobs left."""
        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob("*/run.json"), key=lambda file: (len(file.parent.name), file))
        reports = [report for report in map(read_json, files) if report["rows"]]
        if not reports:
            return
        rows: list[Row] = []
        measured: dict[str, list[Scores]] = {}
        names = _labels(reports)
        for report, name in zip(reports, names, strict=True):
            found = _with_relative([Row(**row) for row in report["rows"]], Path(report["full_evaluation"]))
            for row in found[:-1]:
                # The base differs between jobs that sweep over models; others are named by their first job.
                known = measured.setdefault(row.name, [])
                if row.scores not in known:
                    rows.append(replace(row, name=f"{row.name} ({name})") if known else row)
                    known.append(row.scores)
            rows.append(replace(found[-1], name=name))
        write_csv(folder / "summary.csv", rows)
        print_table(rows)
        console.print(f"summary of the sweep          {folder / 'summary.csv'}")


def _rows(pipeline: Pipeline, store: Store) -> list[Row]:
    # A row tells time and requests of all that it rests on; what was deleted of that is computed again.
    steps = upstream(pipeline.evaluation)
    for step in steps:
        store.ensure(step)
    pool_size = len(store.load(pipeline.pool))
    tuned = Row(
        pipeline.strategy.name,
        store.load(pipeline.evaluation),
        requested=len(requested_ids(store, pipeline.evaluation)) / pool_size,
        seconds=sum(store.manifest(step)["wall_seconds"] for step in steps),
    )
    if isinstance(pipeline.benchmark_source, ExternalBenchmarks):
        return [tuned]
    base = Row("base", store.load(pipeline.base_evaluation), requested=0.0)
    return [base, Row("most frequent", store.load(pipeline.most_frequent)), tuned]


def _with_relative(rows: list[Row], full_evaluation: Path) -> list[Row]:
    """Fills in Rel., if the same run with all instructions is in the store."""
    if not (full_evaluation / MANIFEST).exists():
        return rows
    check_result(full_evaluation)
    full = read_json(full_evaluation / "scores.json")
    return [replace(row, relative=relative_score(row.scores, full)) for row in rows]


def _labels(reports: list[dict[str, Any]]) -> list[str]:
    """Names jobs by their strategy and whatever else differs between them."""
    common = set.intersection(*(set(report["overrides"]) for report in reports))
    return [
        " ".join(
            [report["strategy"]]
            + [
                override
                for override in report["overrides"]
                if override not in common and not override.startswith("strategy=")
            ]
        )
        for report in reports
    ]


def _shown(pipeline: Pipeline, target: Stage[Any]) -> dict[str, Stage[Any]]:
    """The steps on the way to `target` that leave something for the user."""
    done = {(step.name, step.key) for step in upstream(target)}
    # A run without benchmarks has no evaluation that could be asked for.
    steps = {name: getattr(pipeline, name) for name in STEPS if name != "evaluation"}
    if pipeline.benchmark_source is not None:
        steps["evaluation"] = pipeline.evaluation
    return {name: step for name, step in steps.items() if (step.name, step.key) in done}


def _print_paths(shown: Mapping[str, Stage[Any]], store: Store, folder: Path) -> None:
    for name, step in shown.items():
        what, file = STEPS[name]
        if isinstance(step, ExternalEvaluationStage):
            what, file = "results", "results"
        console.print(f"{what:<29} {store.folder(step) / file}")
    console.print(f"{'run, its config and manifest':<29} {folder}")
