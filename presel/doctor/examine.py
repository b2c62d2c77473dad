"""Everything the doctor wants to know of an image file, from decoding it once."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from presel.data.decoding import FORMATS, BrokenImage
from presel.data.images import open_usable
from presel.storage.files import sha256

# Side of the thumbnails that near-duplicates are told by, in pixels.
THUMBNAIL = 16

# Pictures without a brighter pixel are nearly black, as those of 10, 12 or 14 bits stored as 16.
NEARLY_BLACK = 64

# Formats that can hold several pictures; the others are not opened again to count them.
_FRAMED = frozenset({"GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"})
# JPEG blurs a single color by a level or two.
_BLANK_RANGE = 6


class Examined(NamedTuple):
    """What an image file is like. Of an unusable one, only `fault` and `size` say something.

    Attributes:
        fault: Why it cannot be used, or None.
        content: Digest of the file's bytes, the same for copies.
        size: Bytes of the file; 0 where there is none.
        width: In pixels, upright.
        height: In pixels, upright.
        format: Pillow's name of the file's format.
        mode: Pillow's name of the kind of pixels in the file.
        rotated: Whether EXIF has it turned or mirrored.
        frames: Whether it holds several pictures.
        blank: Whether it shows a single color.
        brightest: Highest value of a pixel's channels, 0 to 255.
        thumbnail: RGB pixels of the picture at 16 × 16, row by row.
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
    """Examines an image of a pool.

    Args:
        root: The image folder, all links resolved.
        image: Path relative to it.
        min_side: Smallest width and height that is usable, in pixels.
    """
    try:
        path, picture = open_usable(root, image, min_side)
    except BrokenImage as error:
        return Examined(error.reason, _size(root / image))
    small = picture.image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=2.0)
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
        # Its metadata may be broken; see `presel.data.bare`.
        except Exception:
            return False
        with image:
            try:
                return bool(getattr(image, "is_animated", False))
            # What follows the first picture may be broken; that one is all that is used.
            except Exception:
                return True


def _brightest(image: Image.Image, small: Image.Image) -> int:
    """Looks at every pixel only where the thumbnail is dark."""
    brightest = int(np.asarray(small).max())
    if brightest >= NEARLY_BLACK:
        return brightest
    return max(high for _, high in image.getextrema())  # type: ignore[misc]


def _is_blank(image: Image.Image, small: Image.Image) -> bool:
    """Looks at every pixel only where the thumbnail shows nothing."""
    if np.ptp(np.asarray(small), axis=(0, 1)).max() > _BLANK_RANGE:
        return False
    return all(high - low <= _BLANK_RANGE for low, high in image.getextrema())  # type: ignore[misc]
