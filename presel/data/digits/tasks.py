"""Ten tasks: questions about a scene and their answers.

A task is a function of a random generator and a scene that returns the question and answer of each turn, or
None if the task has no question about the scene. Questions refer only to unambiguous items.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from presel.data.digits.glyphs import GLYPHS, SHAPES
from presel.data.digits.scenes import CELLS, COLORS, TEXTURES, TINTS, Item, Scene

Turns = list[tuple[str, str]]
Writer = Callable[[np.random.Generator, Scene], Turns | None]

_Option = TypeVar("_Option")
_LETTERS = "ABC"


@dataclass(frozen=True)
class Task:
    """A task of the pool, and the benchmark of the same name.

    Attributes:
        write: Writes questions and answers.
        share: Share of the pool.
        digit_share: Probability that an item of its scenes is a digit.
    """

    write: Writer
    share: float
    digit_share: float = 0.55


def background(scene: Scene) -> str:
    """Texture and color of the background in words."""
    return f"{TEXTURES[scene.texture]} {TINTS[scene.tint]}"


def box_text(item: Item) -> str:
    """x1, y1, x2, y2 relative to the picture, as LLaVA writes boxes."""
    return "[" + ", ".join(f"{min(edge, 0.99):.2f}" for edge in item.box) + "]"


def _pick(rng: np.random.Generator, options: Sequence[_Option]) -> _Option:
    return options[int(rng.integers(len(options)))]


def _unique_kinds(scene: Scene) -> list[Item]:
    counts = Counter(item.kind for item in scene.items)
    return [item for item in scene.items if counts[item.kind] == 1]


def _unique_names(scene: Scene) -> list[Item]:
    counts = Counter(item.name for item in scene.items)
    return [item for item in scene.items if counts[item.name] == 1]


def _digits(scene: Scene) -> list[Item]:
    return [item for item in scene.items if item.is_digit]


def _other(rng: np.random.Generator, options: Sequence[str], taken: Sequence[str], size: int) -> list[str]:
    left = [option for option in options if option not in taken]
    return [left[i] for i in rng.permutation(len(left))[:size]]


def _short(rng: np.random.Generator, scene: Scene) -> Turns | None:
    aspect = rng.random()
    if aspect < 0.3:
        if not (items := _unique_kinds(scene)):
            return None
        item = _pick(rng, items)
        forms = ("What color is the {}?", "Which color does the {} have?", "Tell me the color of the {}.")
        question, answer = _pick(rng, forms).format(item.kind), COLORS[item.color]
    elif aspect < 0.6:
        filled = {item.cell: item.kind for item in scene.items}
        cell = _pick(rng, list(filled)) if rng.random() < 0.85 else int(rng.integers(len(CELLS)))
        forms = ("What is in the {}?", "Name the thing in the {}.", "What does the {} show?")
        question, answer = _pick(rng, forms).format(CELLS[cell]), filled.get(cell, "nothing")
    elif aspect < 0.85:
        if not (items := _unique_names(scene)):
            return None
        item = _pick(rng, items)
        forms = ("Where is the {}?", "In which part is the {}?", "Locate the {} in words.")
        question, answer = _pick(rng, forms).format(item.name), CELLS[item.cell]
    elif aspect < 0.93:
        question = _pick(rng, ("What color is the background?", "Which color lies behind everything?"))
        answer = TINTS[scene.tint]
    else:
        question = _pick(rng, ("What is the texture of the background?", "How does the background look?"))
        answer = TEXTURES[scene.texture]
    return [(f"{question} Answer briefly.", answer)]


def _yesno(rng: np.random.Generator, scene: Scene) -> Turns | None:
    aspect, truth = rng.random(), bool(rng.random() < 0.5)
    item = _pick(rng, scene.items)
    if aspect < 0.4:
        name = item.name
        if not truth:  # A wrong color or kind only, so that answering takes both.
            if rng.random() < 0.5:
                name = f"{_pick(rng, COLORS)} {item.kind}"
            else:
                kinds = GLYPHS[:10] if item.is_digit else SHAPES
                name = f"{COLORS[item.color]} {_pick(rng, kinds)}"
            if name in {shown.name for shown in scene.items}:
                return None
        existence = ("Is there a {}?", "Does the picture show a {}?", "Can you see a {}?")
        question = _pick(rng, existence).format(name)
    elif aspect < 0.65:
        if not (items := _unique_kinds(scene)):
            return None
        item = _pick(rng, items)
        color = COLORS[item.color] if truth else _other(rng, COLORS, [COLORS[item.color]], 1)[0]
        question = _pick(rng, ("Is the {} {}?", "Does the {} have the color {}?")).format(item.kind, color)
    elif not (question := _relation(rng, scene, truth)):
        return None
    return [(question, "yes" if truth else "no")]


def _relation(rng: np.random.Generator, scene: Scene, truth: bool) -> str:
    """Asks whether one item is above or left of another; empty if that is ambiguous."""
    items = _unique_names(scene)
    if len(items) < 2:
        return ""
    first, second = (items[i] for i in rng.permutation(len(items))[:2])
    if rng.random() < 0.5:
        delta = second.row - first.row
        forms = ("Is the {} above the {}?", "Is the {} higher up than the {}?")
    else:
        delta = second.column - first.column
        forms = ("Is the {} left of the {}?", "Does the {} lie left of the {}?")
    if delta == 0:
        return ""
    if (delta > 0) != truth:
        first, second = second, first
    return _pick(rng, forms).format(first.name, second.name)


def _choice(rng: np.random.Generator, scene: Scene) -> Turns | None:
    aspect = rng.random()
    if aspect < 0.4:
        shown = {item.name for item in scene.items}
        right = _pick(rng, scene.items).name
        others = {f"{_pick(rng, COLORS)} {_pick(rng, GLYPHS)}" for _ in range(4)}
        wrong = sorted(others - shown)[:2]
        question = _pick(rng, ("Which of these is in the picture?", "What can be seen?"))
    elif aspect < 0.75:
        if not (items := _unique_kinds(scene)):
            return None
        item = _pick(rng, items)
        right = COLORS[item.color]
        wrong = _other(rng, COLORS, [right], 2)
        question = _pick(rng, ("Which color has the {}?", "Choose the color of the {}.")).format(item.kind)
    else:
        if not (items := _unique_names(scene)):
            return None
        item = _pick(rng, items)
        right = CELLS[item.cell]
        wrong = _other(rng, CELLS, [right], 2)
        question = _pick(rng, ("Where does the {} lie?", "Choose the place of the {}.")).format(item.name)
    if len(wrong) < 2:
        return None
    options = [right, *wrong]
    order = rng.permutation(3)
    # Letters follow the options, in the answer too: a model as small as the built-in one finds what follows a
    # word, but cannot compare three options without naming one.
    listed = [f"{options[i]}: {letter}" for letter, i in zip(_LETTERS, order, strict=True)]
    choices = "\n".join([question, *listed, "Answer with an option and its letter."])
    return [(choices, listed[int(np.argmin(order))])]


def _count(rng: np.random.Generator, scene: Scene) -> Turns | None:
    aspect = rng.random()
    if aspect < 0.25:
        noun, count = "things", len(scene.items)
    elif aspect < 0.5:
        noun, count = "digits", len(_digits(scene))
    elif aspect < 0.7:
        noun, count = "shapes", len(scene.items) - len(_digits(scene))
    else:
        color = _pick(rng, scene.items).color if rng.random() < 0.8 else int(rng.integers(len(COLORS)))
        noun, count = f"{COLORS[color]} things", sum(item.color == color for item in scene.items)
    forms = ("How many {} are there?", "Count the {}.", "What is the number of {}?")
    return [(_pick(rng, forms).format(noun), str(count))]


def _read(rng: np.random.Generator, scene: Scene) -> Turns | None:
    digits = sorted(_digits(scene), key=lambda item: item.column)
    if not digits or len({item.column for item in digits}) < len(digits):
        return None
    forms = (
        "Read the digits from left to right.",
        "Which number do the digits form from left to right?",
        "Write down the digits in order, left to right.",
    )
    return [(_pick(rng, forms), "".join(item.kind for item in digits))]


def _box(rng: np.random.Generator, scene: Scene) -> Turns | None:
    if not (items := _unique_names(scene)):
        return None
    item = _pick(rng, items)
    forms = ("Give the box of the {}.", "Which box holds the {}?", "Put a box around the {}.")
    return [(_pick(rng, forms).format(item.name), box_text(item))]


def _caption(rng: np.random.Generator, scene: Scene) -> Turns | None:
    names = [f"a {item.name}" for item in scene.items]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return [("Write a caption for the picture.", f"{listed[0].upper()}{listed[1:]} on {background(scene)}.")]


def _describe(rng: np.random.Generator, scene: Scene) -> Turns | None:
    forms = (
        "Describe the picture in detail.",
        "Tell me everything that you see.",
        "What is going on in this picture?",
    )
    places = " ".join(f"The {CELLS[item.cell]} holds a {item.name}." for item in scene.items)
    return [(_pick(rng, forms), f"The background is {background(scene)}. {places}")]


def _dialog(rng: np.random.Generator, scene: Scene) -> Turns | None:
    item = _pick(rng, scene.items)
    forms = ("What do you see in the {}?", "What have we got in the {}?")
    opening = _pick(rng, forms).format(CELLS[item.cell])
    aspect = rng.random()
    if aspect < 0.25:
        twins = [other for other in scene.items if other.color == item.color and other is not item]
        if len(twins) > 1:
            return None
        question = _pick(rng, ("What else has that color?", "Does anything share its color?"))
        answer = f"The {twins[0].kind} does." if twins else "Nothing else does."
    elif aspect < 0.7:
        horizontal = rng.random() < 0.5
        if (item.column if horizontal else item.row) == 2:
            return None
        target = item.cell + (1 if horizontal else 3)
        beside = [other.name for other in scene.items if other.cell == target]
        question = "And what is next to it on the right?" if horizontal else "And what is just below it?"
        answer = f"There is a {beside[0]}." if beside else "There is nothing."
        if not beside and rng.random() < 0.6:
            return None
    elif aspect < 0.85:
        question = _pick(rng, ("What is behind it?", "What background does it stand on?"))
        answer = f"It stands on {background(scene)}."
    else:
        question = _pick(rng, ("How many other things are there?", "How much else is there?"))
        answer = f"There are {len(scene.items) - 1} others."
    return [(opening, f"I see a {item.name}."), (question, answer)]


def _math(rng: np.random.Generator, scene: Scene) -> Turns | None:
    values = sorted(item.glyph for item in _digits(scene))
    if not 2 <= len(values) <= 3:
        return None
    aspect = rng.random()
    if aspect < 0.4:
        forms, answer = ("What is the sum of the digits?", "Add up the digits."), sum(values)
    elif aspect < 0.6:
        forms, answer = ("What is the largest digit minus the smallest?",) * 2, values[-1] - values[0]
    elif aspect < 0.8:
        forms, answer = ("Which is the largest digit?", "Name the biggest digit."), values[-1]
    else:
        forms, answer = ("Which is the smallest digit?", "Name the lowest digit."), values[0]
    return [(_pick(rng, forms), str(answer))]


# Shares as in LLaVA-1.5's mixture: many short answers and conversations, few captions.
TASKS: Mapping[str, Task] = {
    "short": Task(_short, 0.19),
    "yesno": Task(_yesno, 0.14),
    "choice": Task(_choice, 0.12),
    "count": Task(_count, 0.10),
    "read": Task(_read, 0.11, digit_share=0.85),
    "box": Task(_box, 0.10),
    "caption": Task(_caption, 0.05),
    "describe": Task(_describe, 0.05),
    "dialog": Task(_dialog, 0.08),
    "math": Task(_math, 0.06, digit_share=0.85),
}
