"""Many narrow tasks, as in Vision-FLAN: the ten tasks, split by a word of their text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from presel.data.digits.glyphs import GLYPHS
from presel.data.digits.scenes import CELLS, COLORS, TEXTURES, TINTS, Scene
from presel.data.digits.tasks import TASKS, Task, Turns

# The words by which a task is split; these are searched for in its questions.
_IN_QUESTIONS: Mapping[str, Sequence[str]] = {
    "short": [*CELLS, *GLYPHS],
    "yesno": COLORS,
    "choice": ["which", "what", "where", "choose"],
    "count": [*COLORS, "digits", "shapes"],
    "read": ["read", "which", "write"],
    "box": GLYPHS,
    "dialog": CELLS,
    "math": ["sum", "add", "minus", "largest", "biggest", "smallest", "lowest"],
}
_IN_ANSWERS: Mapping[str, Sequence[str]] = {"caption": TINTS, "describe": TEXTURES}


def _part_with(task: Task, word: str, index: int) -> Task:
    """The part of a task whose questions (index 0) or answers (index 1) contain a word."""
    pattern = re.compile(rf"\b{word}\b", re.IGNORECASE)

    def write(rng: np.random.Generator, scene: Scene) -> Turns | None:
        turns = task.write(rng, scene)
        return turns if turns and any(pattern.search(turn[index]) for turn in turns) else None

    return replace(task, write=write)


_PARTS = {
    f"{name}_{word}": _part_with(TASKS[name], str(word), index)
    for index, words_by_task in enumerate((_IN_QUESTIONS, _IN_ANSWERS))
    for name, words in words_by_task.items()
    for word in words
}
# All of the same size, unlike the ten tasks.
NARROW_TASKS = {name: replace(task, share=1 / len(_PARTS)) for name, task in _PARTS.items()}
