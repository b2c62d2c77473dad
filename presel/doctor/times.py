"""Estimates how long the stages of a run would take, from earlier runs in the store."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from presel.doctor.plan import Plan
from presel.errors import PreselError
from presel.pipeline import Pipeline
from presel.stages.learning_gain import ReferenceHalfStage
from presel.stages.swapped_images import SwappedImagesStage
from presel.stages.training_set import TextOnlyStage, TrainingSetStage
from presel.stages.uncertainty import UncertaintyStage
from presel.storage.integrity import MANIFEST, DamagedResult, read_manifest
from presel.storage.stage import Stage, identity
from presel.storage.store import Store
from presel.strategies.rounds import bought_after

# Fields that decide how many images a stage processes, not how long each takes.
_DATA = frozenset(
    [
        "source",
        "pool",
        "reference",
        "bought",
        "instructions",
        "samples",
        "chosen",
        "needed",
        "parts",
        "seed",
        "share",
        "budget",
        "size",
    ]
)
# Where a stage's manifest has its number of images; a stage without any has that of its first input.
_COUNTS = ("different_images", "samples", "requested", "images")
# An earlier run may be this many times larger or smaller.
_COMPARABLE = 4

# Seconds, None if unknown, and the source of the estimate.
Estimated = tuple[float | None, str]
UNKNOWN = "no similar run in the store"


@dataclass(frozen=True)
class StageTime:
    """How long a stage would take.

    Attributes:
        stage: Its label.
        images: Images or samples it processes; None if unknown.
        seconds: The estimate; None if there is none.
        source: What the estimate is based on.
    """

    stage: str
    images: int | None
    seconds: float | None
    source: str


@dataclass(frozen=True)
class Work:
    """The size of a run, and what the doctor measured.

    Attributes:
        plan: The instructions that it buys.
        images: Usable images.
        different: Different images among them.
        text_only: Records without an image that are trained on beside them.
        seconds: Time that it took to decode the images.
        pool_store: The store that holds the pool's files, if a stage makes them.
    """

    plan: Plan
    images: int
    different: int
    text_only: int
    seconds: float
    pool_store: Store


def stage_times(pipeline: Pipeline, steps: Sequence[Stage[Any]], work: Work, store: Store) -> list[StageTime]:
    """Estimates how long every stage of a run takes, from the durations of earlier runs in the store."""
    times = []
    for step in steps:
        images = work.different if step == pipeline.features else _images(step, pipeline, work)
        try:
            seconds, source = _estimate(step, images, pipeline, work, store)
        except PreselError as error:
            seconds, source = None, str(error)
        times.append(StageTime(step.label, images, seconds, source))
    return times


def _images(step: Stage[Any], pipeline: Pipeline, work: Work) -> int | None:
    """Images or samples that a stage works on: those of its first input, unless they are known."""
    if step == pipeline.merged:
        return None
    if step in (pipeline.all_instructions, pipeline.images, *pipeline.source.stages):
        return work.images
    if step == pipeline.instructions:
        return sum(work.plan.selected.values())
    if work.plan.reference is not None and step == pipeline.reference_instructions:
        return sum(work.plan.reference.values())
    if isinstance(step, SwappedImagesStage | ReferenceHalfStage | UncertaintyStage):
        reference = _images(step.instructions, pipeline, work) or 0
        if isinstance(step, UncertaintyStage):
            return work.images - reference
        return math.ceil(reference / 2) if isinstance(step, ReferenceHalfStage) else reference
    for number, one in enumerate(pipeline.rounds, start=1):
        if step == one.instructions:
            images = sum(work.plan.selected.values()) - sum((work.plan.reference or {}).values())
            before, after = (bought_after(end, work.plan.rounds, images) for end in (number - 1, number))
            return after - before
    if isinstance(step, TextOnlyStage):
        return work.text_only
    if isinstance(step, TrainingSetStage):
        return sum(_images(part, pipeline, work) or 0 for part in step.parts)
    return _images(step.inputs[0], pipeline, work) if step.inputs else None


def _estimate(
    step: Stage[Any], images: int | None, pipeline: Pipeline, work: Work, store: Store
) -> Estimated:
    if store.has(step):
        return 0.0, "done: its result is in the store"
    if step in pipeline.source.stages:
        return work.pool_store.manifest(step)["wall_seconds"], "just made for this check"
    if step == pipeline.images:
        return work.seconds, "just decoded for this check"
    return next(_earlier(step, images, store), (None, UNKNOWN))


def _earlier(step: Stage[Any], images: int | None, store: Store) -> Iterator[Estimated]:
    """Estimates from runs of the same stage on other data, the run of the most similar size first."""
    runs = []
    for file in sorted((store.root / step.name).glob(f"*/{MANIFEST}")):
        try:
            manifest = read_manifest(file.parent)
            if not _has_same_settings(step, manifest, store):
                continue
            done = _count(manifest, store)
        except DamagedResult:
            continue
        if images is None:
            yield manifest["wall_seconds"], f"a run of {manifest['finished'][:10]}"
        elif done:
            runs.append((abs(math.log(images / done)) if images else 0.0, done, manifest))
    for distance, done, manifest in sorted(runs, key=lambda run: run[0]):
        if distance <= math.log(_COMPARABLE):
            seconds = manifest["wall_seconds"] / done * (images or 0)
            yield seconds, f"a run on {done:,} of {manifest['finished'][:10]}"


def _has_same_settings(step: Stage[Any], manifest: dict[str, Any], store: Store) -> bool:
    """Whether a manifest is from this stage with the same models and settings, on any data."""
    if manifest["version"] != step.version:
        return False
    if getattr(step, "precision", None) != manifest["settings"].get("precision"):
        return False
    for field in fields(step):
        if not field.compare or field.name in _DATA:
            continue
        mine, other = getattr(step, field.name), manifest["settings"].get(field.name)
        # Another set of benchmark questions takes another time.
        if isinstance(mine, Stage) and field.name != "benchmarks":
            file = store.root / mine.name / str((other or {}).get("key")) / MANIFEST
            same = file.exists() and _has_same_settings(mine, read_manifest(file.parent), store)
        else:
            same = identity(mine) == other
        if not same:
            return False
    return True


def _count(manifest: dict[str, Any], store: Store) -> int | None:
    for name in _COUNTS:
        if name in manifest["measured"]:
            return int(manifest["measured"][name])
    for source in manifest["inputs"]:
        file = store.root / source / MANIFEST
        return _count(read_manifest(file.parent), store) if file.exists() else None
    return None
