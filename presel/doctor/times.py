"""How long the stages of a run would take: by earlier runs in the store, else by a trial on some images."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from presel.data.digits.stage import ScenesStage
from presel.data.llava import Record
from presel.data.prompts import IMAGE_TOKEN, Turn
from presel.doctor.plan import Plan
from presel.errors import PreselError
from presel.models.encoder import Encoder
from presel.models.hardware import Hardware
from presel.models.lvlm import Lvlm
from presel.models.model_files import locate
from presel.models.tune import Tune
from presel.pipeline import Pipeline
from presel.stages.evaluation import EvaluationStage, MostFrequentStage
from presel.stages.external_evaluation import ExternalEvaluationStage
from presel.stages.features import FeaturesStage
from presel.stages.instructions import InstructionsStage
from presel.stages.merged import MergedStage
from presel.stages.pool import PoolStage
from presel.stages.reference import ReferenceStage
from presel.stages.tuning import FineTuneStage, TuningStage
from presel.storage.integrity import MANIFEST, DamagedResult, read_manifest
from presel.storage.shards import chunks
from presel.storage.stage import Stage, identity
from presel.storage.store import Store

# Fields that decide how many images a stage works on, and not how long one takes.
_DATA = frozenset(
    ["source", "pool", "reference", "instructions", "chosen", "needed", "seed", "share", "budget", "size"]
)
# What a stage's manifest counts its images by; one that counts none is counted by its first input.
_COUNTS = ("different_images", "samples", "requested", "images")
# How many times larger or smaller an earlier run may be.
_COMPARABLE = 4
# A larger model takes longer to load than a trial may take.
_TRIED_BELOW_BYTES = 2 * 10**9
_TRIED_BATCHES = 5
_QUESTION = f"{IMAGE_TOKEN}\nWhat is in this picture, and where is it?"
_ANSWER = "There is a small red house on the left and a tree behind it."

# Seconds, and what they rest on; None for a stage of which nothing is known.
Estimated = tuple[float | None, str]
UNKNOWN = "no run like it in the store"


@dataclass(frozen=True)
class StageTime:
    """How long a stage would take.

    Attributes:
        stage: Its label.
        images: Images or samples it works on; None where that is not known.
        seconds: The estimate; None where there is none.
        source: What it rests on.
    """

    stage: str
    images: int | None
    seconds: float | None
    source: str


@dataclass(frozen=True)
class Work:
    """How much a run has to do, and what the doctor saw of it.

    Attributes:
        plan: What it buys.
        images: Usable images.
        different: The different ones among them.
        seconds: What it took to decode them.
        made: The store that the pool's files are in, if they are made by a stage.
        sound: Whether the pool's records are as they should be, so that results can be looked up.
        trial: Images to try the models on; none to try nothing.
        scratch: A folder for what a trial leaves.
    """

    plan: Plan
    images: int
    different: int
    seconds: float
    made: Store
    sound: bool
    trial: tuple[Path, ...]
    scratch: Path


def steps_to(*targets: Stage[Any]) -> list[Stage[Any]]:
    """The targets and everything they rest on, inputs first, each once.

    Unlike `upstream` it asks for no keys, which a pool with faulty records does not have.
    """
    found: list[Stage[Any]] = []

    def visit(step: Stage[Any]) -> None:
        if step not in found:
            for source in step.inputs:
                visit(source)
            found.append(step)

    for target in targets:
        visit(target)
    return found


def stage_times(pipeline: Pipeline, steps: Sequence[Stage[Any]], work: Work, store: Store) -> list[StageTime]:
    """Estimates how long every stage of a run takes.

    Args:
        pipeline: The run.
        steps: Its stages.
        work: How much there is to do.
        store: Where earlier runs left how long they took.
    """
    times = []
    for step in steps:
        images = _images(step, pipeline, work)
        try:
            seconds, source = _estimate(step, images, pipeline, work, store)
        except PreselError as error:
            seconds, source = None, str(error)
        times.append(StageTime(step.label, images, seconds, source))
    return times


def _images(step: Stage[Any], pipeline: Pipeline, work: Work) -> int | None:
    if isinstance(step, EvaluationStage | ExternalEvaluationStage | MostFrequentStage | MergedStage):
        return None
    # The benchmarks are not examined.
    if isinstance(step, PoolStage | ScenesStage) and step not in (pipeline.images, *pipeline.source.stages):
        return None
    if isinstance(step, FeaturesStage):
        return work.different
    bought = step if isinstance(step, InstructionsStage) else getattr(step, "instructions", None)
    if bought is None or bought.chosen == pipeline.pool:
        return work.images
    if isinstance(bought.chosen, ReferenceStage) and work.plan.reference is not None:
        return sum(work.plan.reference.values())
    return sum(work.plan.selected.values())


def _estimate(
    step: Stage[Any], images: int | None, pipeline: Pipeline, work: Work, store: Store
) -> Estimated:
    if work.sound and store.has(step):
        return 0.0, "done: its result is in the store"
    if step in pipeline.source.stages:
        return work.made.manifest(step)["wall_seconds"], "just made for this check"
    if step == pipeline.images:
        return work.seconds, "just decoded for this check"
    earlier = next(_earlier(step, images, store), None)
    if earlier is not None:
        return earlier
    if isinstance(step, FeaturesStage):
        encode = partial(_encode, step.encoder, step.hardware.accelerator, work.trial)
        return _tried(step.encoder.path, images, work, encode)
    if isinstance(step, TuningStage):
        tune = partial(_tune, step.lvlm, step.tune, step.hardware, work.trial, work.scratch)
        return _tried(step.lvlm.path, images, work, tune)
    return None, UNKNOWN


def _earlier(step: Stage[Any], images: int | None, store: Store) -> Iterator[Estimated]:
    """Estimates from runs of the same stage on other data, the one of the most similar size first."""
    runs = []
    for file in sorted((store.root / step.name).glob(f"*/{MANIFEST}")):
        try:
            manifest = read_manifest(file.parent)
            if not _does_the_same(step, manifest, store):
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


def _does_the_same(step: Stage[Any], manifest: dict[str, Any], store: Store) -> bool:
    """Whether a manifest is of this stage with these models and settings, on whatever data."""
    if manifest["version"] != step.version:
        return False
    if isinstance(step, FineTuneStage) and step.precision != manifest["settings"].get("precision"):
        return False
    for field in fields(step):  # type: ignore[arg-type]
        if not field.compare or field.name in _DATA:
            continue
        mine, other = getattr(step, field.name), manifest["settings"].get(field.name)
        if field.name == "benchmarks":
            # Another number of questions takes another time.
            same = identity(mine) == other
        elif isinstance(mine, Stage):
            file = store.root / mine.name / str((other or {}).get("key")) / MANIFEST
            same = file.exists() and _does_the_same(mine, read_manifest(file.parent), store)
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


def _tried(model: str, images: int | None, work: Work, attempt: Callable[[], Estimated]) -> Estimated:
    """Tries a model on some images, unless it cannot be tried quickly."""
    if not work.trial or not images:
        return None, UNKNOWN
    folder = Path(locate(model))
    if not folder.is_dir():
        return None, f"{UNKNOWN}, and no folder {model} with a model to try"
    weights = [file for file in folder.iterdir() if file.suffix in {".safetensors", ".bin"}]
    if sum(file.stat().st_size for file in weights) > _TRIED_BELOW_BYTES:
        return None, f"{UNKNOWN}, and the model is too large for a trial"
    each, source = attempt()
    return (None if each is None else each * images), source


def _encode(encoder: Encoder, accelerator: str, trial: tuple[Path, ...]) -> Estimated:
    """Seconds an image."""
    batches = list(chunks(trial, encoder.batch_size))[:_TRIED_BATCHES]
    # The first comes twice: loading the model does not count.
    features = encoder.encode([batches[0], *batches], workers=0, accelerator=accelerator)
    next(features)
    started = time.perf_counter()
    done = sum(len(rows) for rows in features)
    return (time.perf_counter() - started) / done, f"tried on {done} of the images"


@cache
def _tune(
    lvlm: Lvlm, settings: Tune, hardware: Hardware, trial: tuple[Path, ...], scratch: Path
) -> Estimated:
    """Seconds a sample, over all epochs; once for the reference model and the final one."""
    # Here, because torch and its companions take seconds, and with earlier runs in the store none is needed.
    from pytorch_lightning.loggers.logger import DummyLogger

    from presel.models.tuner import tune

    turns: tuple[Turn, ...] = ({"from": "human", "value": _QUESTION}, {"from": "gpt", "value": _ANSWER})
    chosen = trial[: settings.micro_batch_size * _TRIED_BATCHES]
    records = [Record(str(number), str(image), "", turns) for number, image in enumerate(chosen)]
    measured = tune(
        lvlm,
        replace(settings, epochs=1),
        hardware,
        records,
        images=Path(),  # the records' paths are absolute
        folder=scratch / "model",
        seed=0,
        workers=0,
        logger=DummyLogger(),
    )
    if "samples_per_second" not in measured:
        return None, "too few images to try the model on"
    source = f"tried on {len(records)} of the images, with a made-up question and answer of 9 and 13 words"
    return settings.epochs / measured["samples_per_second"], source
