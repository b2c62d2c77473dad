"""Samples and renders scenes: up to four glyphs in a jittered 3x3 grid on a background."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from presel.data.digits.glyphs import GLYPHS, SHAPES, STENCIL, stencils

# One word each: a small language model learns one word much sooner than two.
CELLS = (
    *("northwest", "north", "northeast"),
    *("west", "center", "east"),
    *("southwest", "south", "southeast"),
)
COLORS = ("red", "green", "blue", "yellow", "purple", "white")
TINTS = ("black", "gray", "navy", "brown", "teal")
TEXTURES = ("plain", "shaded", "noisy", "striped")
IMAGE_SIZE = 48
MAX_ITEMS = 4
NO_GLYPH = -1

Split = Literal["train", "held_out"]

_COLOR_RGB = np.array(
    [(228, 40, 40), (45, 200, 60), (70, 115, 255), (240, 220, 45), (200, 65, 225), (242, 242, 242)],
    np.float32,
)
_TINT_RGB = np.array([(18, 18, 18), (112, 112, 112), (18, 24, 88), (92, 56, 24), (8, 86, 86)], np.float32)
_GRAINS = 64
_CHUNK = 256


@dataclass(frozen=True)
class Contents:
    """The distribution of what scenes show, as probabilities."""

    digits: NDArray[np.float64]  # (10,), of each digit among digits
    shapes: NDArray[np.float64]  # (5,), of each shape among shapes
    colors: NDArray[np.float64]  # (6,)
    tints: NDArray[np.float64]  # (5,), of each background color
    textures: NDArray[np.float64]  # (4,), of each background texture
    counts: NDArray[np.float64]  # (4,), of one, two, three, four items
    digit_share: float = 0.55  # Of an item to be a digit.

    @classmethod
    def zipf(cls, rng: np.random.Generator | None, exponent: float) -> Self:
        """Zipf's law: probability is proportional to rank to the power of minus `exponent`.

        Args:
            rng: Assigns the ranks at random; None keeps the listed order.
            exponent: 0 for a uniform distribution.
        """

        def falling(size: int) -> NDArray[np.float64]:
            weights = (1.0 + np.arange(size)) ** -exponent
            weights = weights / weights.sum()
            return weights if rng is None else rng.permutation(weights)

        return cls(
            digits=falling(10),
            shapes=falling(len(SHAPES)),
            colors=falling(len(COLORS)),
            tints=falling(len(TINTS)),
            textures=falling(len(TEXTURES)),
            counts=np.array([0.15, 0.3, 0.3, 0.25]),
        )


@dataclass(frozen=True)
class Item:
    """One item of a scene.

    Attributes:
        glyph: Index in `GLYPHS`.
        color: Index in `COLORS`.
        cell: Index in `CELLS`.
        box: x1, y1, x2, y2 in 0..1.
    """

    glyph: int
    color: int
    cell: int
    box: tuple[float, float, float, float]

    @property
    def is_digit(self) -> bool:
        """Whether it is a digit; the other items are shapes."""
        return self.glyph < 10

    @property
    def row(self) -> int:
        """Row of its cell, 0 at the top."""
        return self.cell // 3

    @property
    def column(self) -> int:
        """Column of its cell, 0 on the left."""
        return self.cell % 3

    @property
    def kind(self) -> str:
        """Its digit or shape, without its color."""
        return str(GLYPHS[self.glyph])

    @property
    def name(self) -> str:
        """Its color, and its digit or shape."""
        return f"{COLORS[self.color]} {GLYPHS[self.glyph]}"


@dataclass(frozen=True)
class Scene:
    """The content of a picture; items are in reading order."""

    items: tuple[Item, ...]
    tint: int
    texture: int


@dataclass(frozen=True)
class Scenes:
    """A batch of n scenes as arrays; empty item slots have glyph -1 and follow the filled ones."""

    glyph: NDArray[np.int64]  # (n, 4)
    color: NDArray[np.int64]  # (n, 4)
    cell: NDArray[np.int64]  # (n, 4), ascending over the filled slots
    stencil: NDArray[np.int64]  # (n, 4), row of `glyphs.stencils()`
    left: NDArray[np.int64]  # (n, 4), column of the stencil's left edge
    top: NDArray[np.int64]  # (n, 4), row of its top edge
    shade: NDArray[np.float32]  # (n, 4, 3), shift of each item's RGB color
    tint: NDArray[np.int64]  # (n,)
    texture: NDArray[np.int64]  # (n,)
    grain: NDArray[np.int64]  # (n,), seed of noise, angles and phases
    brightness: NDArray[np.float32]  # (n,), factor on all pixels
    noise: NDArray[np.float32]  # (n,), amplitude of the sensor noise

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.tint)

    def take(self, rows: NDArray[np.int64] | slice) -> "Scenes":
        """The scenes at the given rows."""
        return Scenes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @classmethod
    def concatenate(cls, batches: list["Scenes"]) -> "Scenes":
        """Concatenates batches."""
        return cls(**{f.name: np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(cls)})

    @property
    def boxes(self) -> NDArray[np.float64]:
        """Inked boxes as x1, y1, x2, y2 relative to the picture, shape (n, 4, 4); 0 in empty slots."""
        corner = np.stack([self.left, self.top, self.left, self.top], axis=-1)
        boxes = (stencils().boxes[self.stencil] + corner) / IMAGE_SIZE
        shown: NDArray[np.float64] = boxes * (self.glyph != NO_GLYPH)[..., None]
        return shown

    def views(self) -> Iterator[Scene]:
        """The scenes one by one, as `Scene` objects."""
        columns = (self.glyph, self.color, self.cell, self.boxes, self.tint, self.texture)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for glyphs, colors, cells, boxes, tint, texture in rows:
            filled = zip(glyphs, colors, cells, boxes, strict=True)
            items = tuple(Item(g, c, p, tuple(box)) for g, c, p, box in filled if g != NO_GLYPH)
            yield Scene(items, tint, texture)


def sample(rng: np.random.Generator, size: int, contents: Contents, split: Split = "train") -> Scenes:
    """Samples n = `size` scenes; the split of the stencils decides the handwriting."""
    shape = (size, MAX_ITEMS)  # (n, 4)
    count = 1 + rng.choice(MAX_ITEMS, size=size, p=contents.counts)
    filled = np.arange(MAX_ITEMS) < count[:, None]  # (n, 4)
    cell = np.argsort(rng.random((size, len(CELLS))), axis=1)[:, :MAX_ITEMS]  # (n, 4), without repetition
    cell = np.sort(np.where(filled, cell, len(CELLS)), axis=1)
    is_digit = rng.random(shape) < contents.digit_share
    digit = rng.choice(10, size=shape, p=contents.digits)
    drawn = 10 + rng.choice(len(SHAPES), size=shape, p=contents.shapes)
    glyph = np.where(filled, np.where(is_digit, digit, drawn), NO_GLYPH)
    choices = getattr(stencils(), split)
    stencil = np.zeros(shape, np.int64)
    for number, rows in enumerate(choices):
        hits = glyph == number
        stencil[hits] = rng.choice(rows, size=int(hits.sum()))
    cell = np.where(filled, cell, 0)
    return Scenes(
        glyph=glyph,
        color=rng.choice(len(COLORS), size=shape, p=contents.colors),
        cell=cell,
        stencil=stencil,
        left=_inside(cell % 3 * STENCIL + rng.integers(-2, 3, size=shape)),
        top=_inside(cell // 3 * STENCIL + rng.integers(-2, 3, size=shape)),
        shade=rng.integers(-18, 19, size=(*shape, 3)).astype(np.float32),
        tint=rng.choice(len(TINTS), size=size, p=contents.tints),
        texture=rng.choice(len(TEXTURES), size=size, p=contents.textures),
        grain=rng.integers(0, 2**16, size=size),
        brightness=rng.uniform(0.85, 1.1, size=size).astype(np.float32),
        noise=rng.uniform(0, 8, size=size).astype(np.float32),
    )


def vary_scenes(rng: np.random.Generator, scenes: Scenes) -> Scenes:
    """The same scenes, shifted by up to a pixel, slightly brighter or darker, with other noise."""
    shape = (len(scenes), 1)
    return replace(
        scenes,
        left=_inside(scenes.left + rng.integers(-1, 2, size=shape)),
        top=_inside(scenes.top + rng.integers(-1, 2, size=shape)),
        brightness=scenes.brightness * rng.uniform(0.94, 1.06, size=len(scenes)).astype(np.float32),
        noise=rng.uniform(0, 8, size=len(scenes)).astype(np.float32),
    )


def render_scenes(scenes: Scenes) -> NDArray[np.uint8]:
    """RGB pictures of n scenes, shape (n, 48, 48, 3), uint8; equal scenes give equal pixels."""
    pictures = np.empty((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for start in range(0, len(scenes), _CHUNK):  # Chunks that fit into the CPU's cache.
        chunk = scenes.take(slice(start, start + _CHUNK))
        canvas = _background(chunk)
        _draw_items(canvas, chunk)
        canvas += _grain_fields()[(chunk.grain * 7 + 3) % _GRAINS] * chunk.noise[:, None, None, None]
        canvas *= chunk.brightness[:, None, None, None]
        pictures[start : start + _CHUNK] = np.clip(canvas, 0, 255, out=canvas)
    return pictures


def _inside(edge: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.clip(edge, 0, IMAGE_SIZE - STENCIL)


@lru_cache(maxsize=1)
def _grain_fields() -> NDArray[np.float32]:
    """Standard normal noise, (64, 48, 48, 3), clipped so that no single pixel looks like an item."""
    fields_ = np.random.default_rng(0).standard_normal((_GRAINS, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    return np.clip(fields_, -2.5, 2.5)


def _background(chunk: Scenes) -> NDArray[np.float32]:
    """Tint plus texture of m scenes, (m, 48, 48, 3)."""
    axis = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    angle = (chunk.grain % 360 * np.pi / 180).astype(np.float32)[:, None, None]  # (m, 1, 1)
    phase = (chunk.grain // 360 % 100 * np.pi / 50).astype(np.float32)[:, None, None]
    across = np.cos(angle) * axis[None, None, :] + np.sin(angle) * axis[None, :, None]  # (m, 48, 48)
    texture = chunk.texture[:, None, None]
    stripes = 16 * np.sin(14 * across + phase)
    relief = np.where(texture == 1, 30 * across, 0) + np.where(texture == 3, stripes, 0)
    canvas = _TINT_RGB[chunk.tint][:, None, None, :] + relief[..., None].astype(np.float32)
    noisy = np.flatnonzero(chunk.texture == 2)
    canvas[noisy] += 16 * _grain_fields()[chunk.grain[noisy] % _GRAINS]
    return canvas


def _draw_items(canvas: NDArray[np.float32], chunk: Scenes) -> None:
    masks = stencils().masks
    span = np.arange(STENCIL)
    for slot in range(MAX_ITEMS):
        rows = np.flatnonzero(chunk.glyph[:, slot] != NO_GLYPH)
        index = (  # Broadcasts to (r, 16, 16), for the r scenes with an item in this slot.
            rows[:, None, None],
            chunk.top[rows, slot][:, None, None] + span[None, :, None],
            chunk.left[rows, slot][:, None, None] + span[None, None, :],
        )
        opacity = masks[chunk.stencil[rows, slot]][..., None]  # (r, 16, 16, 1)
        paint = _COLOR_RGB[chunk.color[rows, slot]] + chunk.shade[rows, slot]  # (r, 3)
        under = canvas[index]  # (r, 16, 16, 3)
        canvas[index] = under + opacity * (paint[:, None, None, :] - under)
