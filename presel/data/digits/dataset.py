"""Writes the built-in pool and benchmarks as LLaVA-format files with an image folder."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from presel.console import progress
from presel.data.digits.scenes import Contents, Scenes, Split, render_scenes, sample, vary_scenes
from presel.data.digits.tasks import TASKS, Task, Turns
from presel.data.prompts import as_turns
from presel.errors import PreselError
from presel.storage.files import write_json

_SKEW = 0.8
# Benchmarks are chosen from this many times as many questions, so that no answer dominates.
_SPARE = 3


def write_pool(
    folder: Path, size: int, seed: int, tasks: Mapping[str, Task] = TASKS, repeated: float = 1 / 3
) -> None:
    """Writes a pool that is skewed and redundant, like web data.

    Contents follow Zipf's law, and a share of the pictures are near-duplicates.

    Args:
        folder: Receives `images/` and, last, `annotations.json`.
        size: Number of pictures, over all tasks.
        seed: Seed of all random choices.
        tasks: The tasks and their shares.
        repeated: Share of each task's pictures that are near-duplicates, below 1.

    Raises:
        PreselError: If the size leaves a task fewer than two pictures.
    """
    generators = np.random.default_rng(seed).spawn(len(tasks) + 1)
    skewed = Contents.zipf(generators.pop(), _SKEW)
    # Integers in proportion to the shares that add up to the pool's size.
    ends = np.rint(np.cumsum([task.share for task in tasks.values()]) * size).astype(int)
    sizes = np.diff(ends, prepend=0).tolist()
    if min(sizes) < 2:
        raise PreselError(
            f"pool.size={size} leaves a task fewer than two images; "
            f"{2 / min(task.share for task in tasks.values()):.0f} is the least"
        )
    records: list[dict[str, object]] = []
    with progress("drawing the pool", size) as advance:
        for (name, task), count in zip(tasks.items(), sizes, strict=True):
            scenes, turns = _pool_samples(generators.pop(), task, count, skewed, repeated)
            records += _write_task(folder / "images", name, scenes, turns)
            advance(count)
    write_json(folder / "annotations.json", records)


def write_benchmarks(folder: Path, size: int, seed: int) -> None:
    """Writes one benchmark per task: balanced, without near-duplicates, in handwriting that the pool lacks.

    Each has `size` pictures; see `write_pool` for the other arguments.
    """
    generators = np.random.default_rng([seed, 1]).spawn(len(TASKS))
    records: list[dict[str, object]] = []
    with progress("drawing the benchmarks", size * len(TASKS)) as advance:
        for name, task in TASKS.items():
            scenes, turns = _eval_samples(generators.pop(), task, size, Contents.zipf(None, 0.0))
            records += _write_task(folder / "images", name, scenes, turns)
            advance(size)
    write_json(folder / "annotations.json", records)


def answerable(
    rng: np.random.Generator, task: Task, size: int, contents: Contents, split: Split = "train"
) -> tuple[Scenes, list[Turns]]:
    """Samples `size` scenes about which a task can ask a question, and the questions and answers of each."""
    contents = replace(contents, digit_share=task.digit_share)
    kept: list[Scenes] = []
    turns: list[Turns] = []
    while len(turns) < size:
        scenes = sample(rng, size, contents, split)
        written = [task.write(rng, view) for view in scenes.views()]
        rows = [row for row, one in enumerate(written) if one][: size - len(turns)]
        kept.append(scenes.take(np.array(rows, np.int64)))
        turns += [one for row in rows if (one := written[row])]
    return Scenes.concatenate(kept), turns


def _pool_samples(
    rng: np.random.Generator, task: Task, size: int, contents: Contents, repeated: float
) -> tuple[Scenes, list[Turns]]:
    repeats = int(size * repeated)
    originals, turns = answerable(rng, task, size - repeats, contents)
    duplicates = vary_scenes(rng, originals.take(rng.integers(len(originals), size=repeats)))
    # Near-duplicates get new questions; one can always be asked, as about the original.
    for view in duplicates.views():
        while not (written := task.write(rng, view)):
            pass
        turns.append(written)
    order = rng.permutation(size)
    return Scenes.concatenate([originals, duplicates]).take(order), [turns[row] for row in order]


def _eval_samples(
    rng: np.random.Generator, task: Task, size: int, contents: Contents
) -> tuple[Scenes, list[Turns]]:
    """Takes one question of each answer in turn, so that answers are about equally frequent."""
    scenes, turns = answerable(rng, task, size * _SPARE, contents, "held_out")
    by_answer: dict[str, list[int]] = defaultdict(list)
    for row, one in enumerate(turns):
        by_answer[one[-1][1]].append(row)
    rank = {row: position for rows in by_answer.values() for position, row in enumerate(rows)}
    rows = sorted(rank, key=lambda row: (rank[row], row))[:size]
    order = rng.permutation(np.array(rows, np.int64))
    return scenes.take(order), [turns[row] for row in order]


def _write_task(images: Path, task: str, scenes: Scenes, turns: list[Turns]) -> Iterator[dict[str, object]]:
    for picture, (number, one) in zip(render_scenes(scenes), enumerate(turns), strict=True):
        path = images / task / f"{number // 1000:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, compress_level=1)
        yield {
            "id": f"{task}/{number:06d}",
            "image": path.relative_to(images).as_posix(),
            "task": task,
            "conversations": as_turns(one),
        }
