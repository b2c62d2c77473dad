"""Many narrow tasks, as Vision-FLAN has them: the ten tasks, cut by a word of their text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from presel.data.digits.glyphs import GLYPHS
from presel.data.digits.scenes import CELLS, COLORS, TEXTURES, TINTS, Scene
from presel.data.digits.tasks import TASKS, Task, Turns

# The words that cut a task; those of an instruction are looked for in its questions.
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


def _cut(task: Task, word: str, place: int) -> Task:
    """The part of a task whose questions (place 0) or answers (place 1) hold a word."""
    pattern = re.compile(rf"\b{word}\b", re.IGNORECASE)

    def write(rng: np.random.Generator, scene: Scene) -> Turns | None:
        turns = task.write(rng, scene)
        return turns if turns and any(pattern.search(turn[place]) for turn in turns) else None

    return replace(task, write=write)


_CUT = {
    f"{name}_{word}": _cut(TASKS[name], str(word), place)
    for place, cuts in enumerate((_IN_QUESTIONS, _IN_ANSWERS))
    for name, words in cuts.items()
    for word in words
}
# All of one size, where the ten tasks differ: the second pool is mixed differently too.
NARROW_TASKS: Mapping[str, Task] = {name: replace(task, share=1 / len(_CUT)) for name, task in _CUT.items()}
