"""Diagnoses the pool of a run: examines images and records, plans costs, estimates times."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from presel.console import ConsoleReporter
from presel.data.errors import RecordError
from presel.data.image_checks import Checked, check_image, for_each_image
from presel.data.images import image_fingerprint
from presel.data.listing import Listing, PoolFiles
from presel.data.llava import LlavaFiles
from presel.data.sources import DrawnScenes, Source
from presel.doctor import findings
from presel.doctor.examine import Examined, examine
from presel.doctor.findings import SEVERITIES, Finding
from presel.doctor.plan import Plan, plan_for
from presel.doctor.times import StageTime, Work, stage_times
from presel.errors import PreselError
from presel.models.precomputed import Precomputed
from presel.pipeline import Pipeline
from presel.stages.clusters import ClustersStage
from presel.stages.external_evaluation import ExternalEvaluationStage
from presel.stages.instructions import InstructionsStage
from presel.stages.pool import PoolStage
from presel.stages.tasks import Tasks
from presel.storage.files import resumable_folder
from presel.storage.stage import Stage, key_of, upstream
from presel.storage.store import Store

Found = TypeVar("Found")

# Task name of all images if tasks are to be found by clustering.
_UNDISCOVERED = "not discovered yet"
# Kinds of photographs that Pillow does not read by itself.
_OTHER_PHOTOGRAPHS = frozenset(
    {".heic", ".heif", ".jxl", ".avif", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf"}
)


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Attributes:
        images: The image folder.
        table: One row per image of a valid record, see `findings.pool_table`.
        text_only: Number of records without an image, which are skipped.
        text_only_kept: Number of those that are trained on beside the selection.
        excluded: Number of records that `pool.exclude` leaves out.
        near_duplicates: Number of records that `pool.near_duplicates` leaves out.
        findings: All findings, the most severe first.
        plan: The instructions that a run would buy; None if the budget cannot be met.
        times: Time estimates of its stages; empty without a plan.
    """

    images: Path
    table: pd.DataFrame
    text_only: int
    text_only_kept: int
    excluded: int
    near_duplicates: int
    findings: list[Finding]
    plan: Plan | None
    times: list[StageTime]

    @property
    def records(self) -> int:
        """Number of valid records."""
        return int(self.table["id"].nunique())

    @property
    def usable(self) -> pd.DataFrame:
        """The rows of the records whose every image can be used."""
        return findings.of_usable_records(self.table)

    @property
    def faults(self) -> int:
        """Number of findings that stop a run or exclude an image from it."""
        return sum(finding.severity == "fault" for finding in self.findings)


def diagnose(pipeline: Pipeline, targets: list[Stage[Any]], store: Store, scratch: Path) -> Diagnosis:
    """Examines the pool of a run that ends with the stages `targets`.

    A built-in pool is drawn in the folder `scratch`. Of other pools the store gets what a run needs too: the
    images of archives, which have to be unpacked.

    Raises:
        PreselError: If the pool's files cannot be read at all, or its settings leave no record.
    """
    source = pipeline.source
    if isinstance(source, DrawnScenes) and not all(store.has(stage) for stage in source.stages):
        store_of_images = Store(scratch / "store", ConsoleReporter(), executor=store.executor)
    else:
        store_of_images = store
    files = source.files(store_of_images)
    errors: list[RecordError] = []
    listed = files.listing(errors.append)
    listing = _with_tasks(source.sample(listed), pipeline.tasks, errors)
    started = time.perf_counter()
    table = _examined(pipeline, files, listing, store_of_images)
    seconds = time.perf_counter() - started
    usable = findings.of_usable_records(table)
    steps = upstream(*targets)
    records = usable.drop_duplicates("id")
    sizes = {task: int((records["task"] == task).sum()) for task in sorted(set(table["task"]))}
    clustered = any(isinstance(step, ClustersStage) for step in steps)
    images_per_cluster = pipeline.clustering.images_per_cluster if clustered else None
    plan, problems = _planned(pipeline, files, sizes, steps)
    found = [
        *findings.of_records(errors),
        *_of_other_files(files, listing),
        *_of_texts(files, listing),
        *_of_pool(table, files, {image for item in listed.items for image in item.images}, errors),
        *_of_rejected(source, table),
        *(
            finding
            for kind, held_out in _held_out(pipeline, steps)
            for finding in _of_held_out(pipeline, held_out, kind, table, store)
        ),
        *problems,
        *_of_evaluation(steps),
        *_of_features(pipeline, steps, usable),
        *findings.of_tasks(sizes, plan, images_per_cluster),
    ]
    times = []
    if plan is not None:
        different = usable["content"].nunique()
        work = Work(plan, len(records), different, len(listing.kept), seconds, store_of_images)
        times = stage_times(pipeline, steps, work, store)
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Diagnosis(
        images=files.images,
        table=table,
        text_only=listing.text_only,
        text_only_kept=len(listing.kept),
        excluded=len(listing.excluded),
        near_duplicates=len(listing.items) - table["id"].nunique(),
        findings=found,
        plan=plan,
        times=times,
    )


def _with_tasks(listing: Listing, tasks: Tasks, errors: list[RecordError]) -> Listing:
    """Reports images without a task; puts all into one task if tasks are to be discovered."""
    if not tasks.from_source:
        return listing._replace(items=[item._replace(task=_UNDISCOVERED) for item in listing.items])
    remedy = "name one for such images by pool.task=NAME, or have tasks found by tasks=discovered"
    errors += [
        RecordError(f"it has no task; {remedy}", "no task", item.image, item.image)
        for item in listing.items
        if item.task is None
    ]
    return listing._replace(items=[item for item in listing.items if item.task is not None])


def _examined(pipeline: Pipeline, files: PoolFiles, listing: Listing, store: Store) -> pd.DataFrame:
    images = [image for item in listing.items for image in item.images]
    examined = _for_each_image(pipeline, store, pipeline.source, files, images, examine, Examined)
    return findings.pool_table(listing.items, examined, pipeline.source, pipeline.tasks.from_source)


def _for_each_image(
    pipeline: Pipeline,
    store: Store,
    source: Source,
    files: PoolFiles,
    images: list[str],
    function: Callable[..., Found],
    kind: type[Found],
) -> list[Found]:
    """Applies a function to images; an interruption leaves shards in the store, from which it goes on."""
    look = partial(function, min_side=source.min_side)
    name = f"{kind.__name__} {source.min_side} {image_fingerprint(files.images, images)}"
    # Named as results are, so that `presel store clean` finds it.
    with resumable_folder(store.root / "doctor" / key_of(name)) as folder:
        return for_each_image(store, folder, files.images, images, look, kind, pipeline.runtime.workers)


def _of_texts(files: PoolFiles, listing: Listing) -> Iterator[Finding]:
    if isinstance(files, LlavaFiles):
        ids = {item.id for item in listing.items}.union(listing.kept)
        # The errors in the records are reported already.
        records = files.contents(lambda _: None).records
        yield from findings.of_texts([record for record in records if record.id in ids])


def _of_pool(
    table: pd.DataFrame, files: PoolFiles, listed: set[str], errors: list[RecordError]
) -> Iterator[Finding]:
    present = findings.image_files(files.images)
    named = listed | {error.image for error in errors if error.image is not None}
    yield from findings.of_images(table, present)
    yield from findings.of_duplicates(table)
    yield from findings.of_near_duplicates(table)
    yield from findings.of_image_properties(table)
    yield from findings.of_ambiguous_names(table)
    yield from findings.of_unreferenced_files(present, named)


def _of_other_files(files: PoolFiles, listing: Listing) -> Iterator[Finding]:
    """Photographs of kinds that are not read."""
    for kind, number in listing.other_files.items():
        if kind in _OTHER_PHOTOGRAPHS:
            detail = f"{number:,} files are left out; convert them to JPEG or PNG"
            yield Finding("warning", "images of a kind that is not read", f"{kind} in {files.images}", detail)


def _of_rejected(source: Source, table: pd.DataFrame) -> Iterator[Finding]:
    records = table["id"].nunique()
    broken = table.loc[table["fault"].notna(), "id"].nunique()
    if broken > source.max_rejected_share * records:
        detail = f"{broken} of {records}; repair them or raise pool.max_rejected_share"
        where = f"pool.max_rejected_share={source.max_rejected_share:g}"
        yield Finding("fault", "more unusable images than allowed", where, detail)


def _held_out(pipeline: Pipeline, steps: Sequence[Stage[Any]]) -> Iterator[tuple[str, Source]]:
    """The sources of samples outside the pool, but for built-in ones, which need no check."""
    sources: dict[str, object] = {"benchmark": pipeline.benchmark_source}
    if any(isinstance(step, PoolStage) and step.title == "validation" for step in steps):
        sources["validation"] = pipeline.validation_source
    for kind, source in sources.items():
        if isinstance(source, Source) and not source.stages:
            yield kind, source


def _of_held_out(
    pipeline: Pipeline, source: Source, kind: str, table: pd.DataFrame, store: Store
) -> Iterator[Finding]:
    """Images of samples outside the pool that are unusable, and images of benchmarks that are in the pool."""
    files = source.files(store)
    errors: list[RecordError] = []
    items = source.sample(files.listing(errors.append)).items
    yield from findings.of_records(errors)
    shown = [(item, image) for item in items for image in item.images]
    images = [image for _, image in shown]
    checked = _for_each_image(pipeline, store, source, files, images, check_image, Checked)
    in_pool = dict(zip(table["content"], table["image"], strict=True))
    for (item, image), (fault, content, *_) in zip(shown, checked, strict=True):
        where = f"'{item.id}' of {kind} '{item.task}', {image}"
        if fault is not None:
            yield Finding("fault", f"unusable {kind} image", where, fault)
        elif kind == "benchmark" and content in in_pool:
            same = in_pool[content]
            yield Finding("warning", "image also in a benchmark", where, f"it is {same}", images=(same,))


def _of_evaluation(steps: Sequence[Stage[Any]]) -> Iterator[Finding]:
    """A program for benchmarks that is not known to read the model."""
    for step in steps:
        if isinstance(step, ExternalEvaluationStage):
            try:
                family = step.model.tuned.lvlm.family
            # It may be on the hub, which is not asked here.
            except PreselError:
                return
            try:
                step.benchmarks.for_family(family)
            except PreselError as error:
                yield Finding("fault", "evaluation not available", "evaluation", str(error))


def _of_features(pipeline: Pipeline, steps: Sequence[Stage[Any]], usable: pd.DataFrame) -> Iterator[Finding]:
    """What is wrong with features that exist already, if the run reads them."""
    if isinstance(pipeline.encoder, Precomputed) and pipeline.features in steps:
        try:
            pipeline.encoder.check_images(usable["image"])
        except PreselError as error:
            yield Finding("fault", "features not available", "encoder", str(error))


def _planned(
    pipeline: Pipeline, files: PoolFiles, sizes: dict[str, int], steps: list[Stage[Any]]
) -> tuple[Plan | None, list[Finding]]:
    plan, problems = None, []
    try:
        if any(isinstance(step, InstructionsStage) for step in steps):
            pipeline.provider.check(files, list(sizes))
    except PreselError as error:
        problems.append(Finding("fault", "instructions not available", "instructions", str(error)))
    try:
        plan = plan_for(pipeline, {task: size for task, size in sizes.items() if size}, steps)
    except PreselError as error:
        problems.append(Finding("fault", "budget that cannot be met", "budget", str(error)))
    return plan, problems
