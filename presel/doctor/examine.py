"""Examines an image file for `presel doctor`, decoding it once."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from presel.data.decoding import FORMATS, BrokenImage
from presel.data.images import open_usable
from presel.data.near_duplicates import thumbnail
from presel.storage.files import sha256

# Images whose brightest pixel is below this are nearly black, as are 10- to 14-bit images stored as 16-bit.
NEARLY_BLACK = 64

# Formats that can hold several frames; only these are opened again to look for frames.
_FRAMED = frozenset({"GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"})
# JPEG varies a single color by a level or two.
_BLANK_RANGE = 6


class Examined(NamedTuple):
    """Properties of an image file; if it is unusable, only `fault` and `size` are set.

    Attributes:
        fault: Why it cannot be used; None if it can.
        size: Size of the file in bytes; 0 if there is none.
        content: Digest of the file's bytes, the same for copies.
        width: In pixels, after EXIF rotation.
        height: In pixels, after EXIF rotation.
        format: Pillow's name of the file format.
        mode: Pillow's name of the pixel format.
        rotated: Whether EXIF rotates or mirrors it.
        frames: Whether it has several frames.
        blank: Whether all pixels have about the same color.
        brightest: Highest value of any channel of any pixel, 0 to 255.
        thumbnail: RGB pixels of the image at 16 × 16, row by row.
    """

    fault: str | None
    size: int
    content: str | None = None
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    rotated: bool = False
    frames: bool = False
    blank: bool = False
    brightest: int = 255
    thumbnail: bytes = b""


def examine(root: Path, image: str, min_side: int) -> Examined:
    """Examines an image below `root`, symbolic links resolved; `min_side` is in pixels."""
    try:
        path, picture = open_usable(root, image, min_side)
    except BrokenImage as error:
        return Examined(error.reason, _size(root / image))
    small = thumbnail(picture.image)
    return Examined(
        fault=None,
        size=_size(path),
        content=sha256(path),
        width=picture.image.width,
        height=picture.image.height,
        format=picture.format,
        mode=picture.mode,
        rotated=picture.rotated,
        frames=picture.format in _FRAMED and _has_frames(path),
        blank=_is_blank(picture.image, small),
        brightest=_brightest(picture.image, small),
        thumbnail=small.tobytes(),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _has_frames(path: Path) -> bool:
    with warnings.catch_warnings(action="ignore"):
        try:
            image = Image.open(path, formats=(*FORMATS, "MPO"))
        # Its metadata may be broken; see `presel.data.strip_metadata`.
        except Exception:
            return False
        with image:
            try:
                return bool(getattr(image, "is_animated", False))
            # Frames after the first may be broken; only the first is used.
            except Exception:
                return True


def _brightest(image: Image.Image, small: Image.Image) -> int:
    """Reads every pixel only if the thumbnail is dark."""
    brightest = int(np.asarray(small).max())
    if brightest >= NEARLY_BLACK:
        return brightest
    return max(high for _, high in image.getextrema())  # type: ignore[misc]


def _is_blank(image: Image.Image, small: Image.Image) -> bool:
    """Reads every pixel only if the thumbnail has a single color."""
    if np.ptp(np.asarray(small), axis=(0, 1)).max() > _BLANK_RANGE:
        return False
    return all(high - low <= _BLANK_RANGE for low, high in image.getextrema())  # type: ignore[misc]
