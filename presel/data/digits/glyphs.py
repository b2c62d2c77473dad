"""Stencils of the glyphs of a scene: handwritten digits and drawn shapes."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle", "cross", "ring")
GLYPHS = (*"0123456789", *SHAPES)
STENCIL = 16
"""Side of a stencil in pixels, and of a grid cell."""

# Side in pixels and tilt in degrees of each pose of a glyph.
_POSES = ((12, -8), (13, 6), (13, -3), (14, 3), (14, -10), (15, 8))
_SHARPEN = 1.3
_INK = 0.35
_HELD_OUT_EVERY = 5


@dataclass(frozen=True)
class Stencils:
    """All stencils, and those of each glyph.

    Attributes:
        masks: Opacity in 0..1, shape (n, 16, 16), float32.
        boxes: First and one-past-last inked pixel as x1, y1, x2, y2, shape (n, 4).
        train: For each glyph, the rows of the stencils for pools and pretraining.
        held_out: For each glyph, the rows of the stencils for evaluation. Digits are in other handwriting
            than in `train`; drawn shapes are the same in both.
    """

    masks: NDArray[np.float32]
    boxes: NDArray[np.int64]
    train: tuple[NDArray[np.int64], ...]
    held_out: tuple[NDArray[np.int64], ...]


@lru_cache(maxsize=1)
def stencils() -> Stencils:
    """Builds the stencils once: each digit of `sklearn.datasets.load_digits` and each shape in six poses."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    handwritten = np.stack([_posed_digits(digits.images, *pose) for pose in _POSES], axis=1)  # (1797, 6, …)
    drawn = np.stack([_posed_shapes(*pose) for pose in _POSES], axis=1)  # (5, 6, …)
    masks = np.concatenate([handwritten, drawn]).reshape(-1, STENCIL, STENCIL)  # (n, 16, 16)
    source = np.arange(len(masks)) // len(_POSES)  # Rows of `load_digits`, then the shapes.
    glyph = np.concatenate([digits.target, 10 + np.arange(len(SHAPES))])[source]
    is_digit = source < len(digits.target)
    kept = is_digit & (source % _HELD_OUT_EVERY == 0)
    return Stencils(
        masks=masks,
        boxes=_ink_boxes(masks),
        train=tuple(np.flatnonzero((glyph == g) & ~kept) for g in range(len(GLYPHS))),
        held_out=tuple(np.flatnonzero((glyph == g) & (kept | ~is_digit)) for g in range(len(GLYPHS))),
    )


def _grid(side: int, tilt: float, oversample: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates in -1..1 inside a tilted square of the given side, over the stencil's pixels."""
    pixels = STENCIL * oversample
    axis = (np.arange(pixels) + 0.5) / oversample - STENCIL / 2
    x, y = np.meshgrid(axis, axis)
    angle = np.deg2rad(tilt)
    u = (np.cos(angle) * x + np.sin(angle) * y) * 2 / side
    v = (-np.sin(angle) * x + np.cos(angle) * y) * 2 / side
    return u, v


def _posed_digits(images: NDArray[np.float64], side: int, tilt: float) -> NDArray[np.float32]:
    """Bilinear resampling of 8x8 digits, (n, 8, 8) in 0..16 -> (n, 16, 16) in 0..1."""
    size = images.shape[1]
    u, v = _grid(side, tilt)
    padded = np.pad(images / 16.0, ((0, 0), (1, 2), (1, 2)))  # (n, 11, 11)
    column = np.clip((u + 1) * size / 2 - 0.5, -1, size) + 1
    row = np.clip((v + 1) * size / 2 - 0.5, -1, size) + 1
    left, top = column.astype(int), row.astype(int)  # (16, 16)
    right_share, bottom_share = column - left, row - top
    upper = padded[:, top, left] * (1 - right_share) + padded[:, top, left + 1] * right_share
    lower = padded[:, top + 1, left] * (1 - right_share) + padded[:, top + 1, left + 1] * right_share
    mixed = upper * (1 - bottom_share) + lower * bottom_share  # (n, 16, 16)
    posed: NDArray[np.float32] = np.clip(mixed * _SHARPEN, 0, 1).astype(np.float32)
    return posed


def _posed_shapes(side: int, tilt: float) -> NDArray[np.float32]:
    """The shapes in the order of `SHAPES`, antialiased, (5, 16, 16)."""
    oversample = 4
    u, v = _grid(side, tilt, oversample)  # (64, 64)
    radius = np.hypot(u, v)
    inside = np.stack(
        [
            radius < 0.9,
            np.maximum(np.abs(u), np.abs(v)) < 0.8,
            (v < 0.8) & (np.abs(u) < (v + 0.9) * 0.55),
            (np.minimum(np.abs(u), np.abs(v)) < 0.27) & (np.maximum(np.abs(u), np.abs(v)) < 0.9),
            (radius < 0.95) & (radius > 0.55),
        ]
    )
    blocks = inside.reshape(len(SHAPES), STENCIL, oversample, STENCIL, oversample)  # from (5, 64, 64)
    posed: NDArray[np.float32] = blocks.mean(axis=(2, 4)).astype(np.float32)
    return posed


def _ink_boxes(masks: NDArray[np.float32]) -> NDArray[np.int64]:
    inked = masks > _INK
    columns = np.any(inked, axis=1)  # (n, 16)
    rows = np.any(inked, axis=2)  # (n, 16)
    return np.stack(
        [
            columns.argmax(axis=1),
            rows.argmax(axis=1),
            STENCIL - columns[:, ::-1].argmax(axis=1),
            STENCIL - rows[:, ::-1].argmax(axis=1),
        ],
        axis=1,
    )
