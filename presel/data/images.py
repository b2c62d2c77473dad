"""Image files: opened into one form, checked before any work, and fingerprinted."""

import hashlib
import multiprocessing
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from presel.errors import PreselError
from presel.files import sha256

# Above what cameras in wide use give (61 megapixels); at Pillow's four bytes a pixel, 320 MB in every
# process that opens one. A file of a few kilobytes can claim far more.
MAX_PIXELS = 80_000_000

# A closed list, because Pillow's full one runs other programs on some files (Ghostscript on EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

# What names of files in these formats end in, in lower case.
SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs"),
    ]
)

Found = TypeVar("Found")

# How a picture is put upright, by its EXIF orientation. Not `ImageOps.exif_transpose`: that also writes
# the EXIF block anew, which fails on the odd blocks that some cameras leave.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Images a worker takes at once: long enough to hide the hand-over, short enough for smooth progress.
_CHUNK = 64


class Checked(NamedTuple):
    """What the check of an image file found.

    Attributes:
        fault: Why it cannot be used, or None.
        content: Digest of the file's bytes, the same for copies; None where there is a fault.
    """

    fault: str | None
    content: str | None


class Picture(NamedTuple):
    """An opened image file.

    Attributes:
        image: Upright 8-bit RGB, without the file's metadata, so that nothing rotates it again.
        format: Pillow's name of the file's format.
        mode: Pillow's name of the kind of pixels in the file.
        rotated: Whether its EXIF block had it turned or mirrored.
    """

    image: Image.Image
    format: str
    mode: str
    rotated: bool


class BrokenImage(PreselError):
    """An image that cannot be used.

    Attributes:
        reason: What is wrong, in a few words, without the path.
    """

    def __init__(self, reason: str, path: Path | None = None) -> None:
        """Tells what is wrong with which file.

        Args:
            reason: What is wrong, in a few words.
            path: The file; None only where the error is rebuilt from its message (pickling).
        """
        remedy = "replace the file or remove its records"
        super().__init__(reason if path is None else f"{path}: {reason}; {remedy}")
        self.reason = reason


def open_image(path: Path, content: bytes | None = None) -> Image.Image:
    """The image of `open_picture`."""
    return open_picture(path, content).image


def open_picture(path: Path, content: bytes | None = None) -> Picture:
    """Opens an image as upright 8-bit RGB, fully decoded.

    EXIF rotation is applied, transparency is laid on white, 16-bit grey is scaled to 8 bits, CMYK and
    palettes are converted; of an animation the first frame is taken.

    Args:
        path: The image file.
        content: Its bytes, where they are read already.

    Raises:
        BrokenImage: If the file is missing, empty, not an image, truncated, larger than `MAX_PIXELS`,
            or in a form without a brightness scale of its own.
    """
    try:
        if content is None:
            _check_file(path)
        file = path if content is None else BytesIO(content)
        # Pillow warns of odd metadata and of sizes that the limit here already judges.
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImage(f"too large: {_size(image)}")
            image.load()
            turn = turn_upright(image)
            upright = _to_rgb(image if turn is None else image.transpose(turn))
            picture = Picture(upright, str(image.format), image.mode, turn is not None)
    except BrokenImage as error:
        raise BrokenImage(error.reason, path) from None
    except Image.DecompressionBombError:
        raise BrokenImage(f"too large: over {MAX_PIXELS:,} pixels", path) from None
    except FileNotFoundError:
        raise BrokenImage("missing", path) from None
    except UnidentifiedImageError:
        raise BrokenImage("not an image of a known format", path) from None
    except MemoryError:
        raise
    # Pillow's decoders raise whatever the broken bytes lead them to, not OSError alone.
    except Exception as error:
        raise BrokenImage(_short(error), path) from error
    upright.info.clear()
    return picture


def turn_upright(image: Image.Image) -> Image.Transpose | None:
    """How an image is to be turned by its EXIF block, if at all."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    # A garbled EXIF block can raise anything; the picture itself is fine, and has no known rotation.
    except Exception:
        return None


def open_usable(root: Path, image: str, min_side: int) -> tuple[Path, Picture]:
    """Opens an image of a pool.

    Args:
        root: The image folder, all links resolved.
        image: Path relative to it.
        min_side: Smallest width and height that is usable, in pixels.

    Returns:
        Where the file really lies, and the picture.

    Raises:
        BrokenImage: If the image cannot be used.
    """
    path = Path(os.path.realpath(root / image))
    if not path.is_relative_to(root):
        raise BrokenImage("leaves the image folder", path)
    picture = open_picture(path)
    if min(picture.image.size) < min_side:
        raise BrokenImage(f"too small: {_size(picture.image)}", path)
    return path, picture


def check_images(
    root: Path,
    images: Sequence[str],
    workers: int,
    min_side: int = 2,
    on_progress: Callable[[int], None] | None = None,
) -> list[Checked]:
    """Decodes every image, tells which cannot be used, and which are copies.

    Args:
        root: The image folder.
        images: Paths relative to it.
        workers: See `map_images`.
        min_side: Smallest width and height that is usable, in pixels.
        on_progress: See `map_images`.

    Returns:
        What was found of each image.

    Raises:
        PreselError: If there is no such folder, or a worker process dies.
    """
    return map_images(root, images, partial(_check, min_side=min_side), workers, on_progress)


def map_images(
    root: Path,
    images: Sequence[str],
    look: Callable[[Path, str], Found],
    workers: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Found]:
    """Looks at every image of a pool.

    Args:
        root: The image folder.
        images: Paths relative to it; one that occurs several times is looked at once.
        look: Takes the folder, all links resolved, and one path; picklable.
        workers: Processes to share the work; 0 does it in this one. The result does not depend on it.
        on_progress: Called with the number of `images` settled since the last call.

    Returns:
        What was found of each image.

    Raises:
        PreselError: If there is no such folder, or a worker process dies.
    """
    _check_root(root)
    times = Counter(images)
    distinct = list(times)
    chunks = [distinct[start : start + _CHUNK] for start in range(0, len(distinct), _CHUNK)]
    look_at_chunk = partial(_look_at_chunk, look, Path(os.path.realpath(root)))
    looked_at: dict[str, Found] = {}
    for chunk, found in zip(chunks, _map(look_at_chunk, chunks, workers), strict=True):
        looked_at.update(zip(chunk, found, strict=True))
        if on_progress is not None:
            on_progress(sum(times[image] for image in chunk))
    return [looked_at[image] for image in images]


def image_fingerprint(root: Path, images: Sequence[str]) -> str:
    """Sums up the files behind a pool without reading them.

    Args:
        root: The image folder; where it lies does not matter.
        images: Paths relative to it, in any order.

    Returns:
        SHA-256, in hexadecimal, over each path with its file's size and time of change, or its absence.

    Raises:
        PreselError: If there is no such folder.
    """
    _check_root(root)
    return fingerprint((image, root / image) for image in sorted(set(images)))


def fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    """A digest of names, sizes and times of change.

    Args:
        files: What each is called in the digest, and where it lies.

    Returns:
        SHA-256, in hexadecimal, over each name with its file's size and time of change, or its absence.
    """
    digest = hashlib.sha256()
    for name, file in files:
        digest.update(f"{name}\0{_state(file)}\n".encode())
    return digest.hexdigest()


def _state(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return "absent"
    return f"{status.st_size} {status.st_mtime_ns}"


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise PreselError(f"{root}: there is no such image folder; give the one 'image' paths start from")


def _check_file(path: Path) -> None:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise BrokenImage("a folder, not a file")
    # Opening a pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        raise BrokenImage("not an ordinary file")
    if not status.st_size:
        raise BrokenImage("empty file")


def _short(error: Exception) -> str:
    if "truncated" in str(error).lower():
        return "truncated"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror})"
    return f"cannot be decoded ({error or type(error).__name__})"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BrokenImage("floating-point pixels, which have no agreed white")
    if image.mode.startswith("I"):
        return _grey_16_to_8(image).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _grey_16_to_8(image: Image.Image) -> Image.Image:
    """Keeps the high byte, as Pillow does with 16-bit colour; `convert` would clip at 255 instead."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise BrokenImage("32-bit pixels, which have no agreed white")
    grey = (values >> 8).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _map(
    look_at_chunk: Callable[[list[str]], list[Found]], chunks: list[list[str]], workers: int
) -> Iterator[list[Found]]:
    """Maps in order, in this process or in others."""
    if workers == 0 or not chunks:
        yield from map(look_at_chunk, chunks)
        return
    # Spawned, because a fork of a process that runs threads (torch, a progress bar) can lock up.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as executor:
        try:
            yield from executor.map(look_at_chunk, chunks)
        except BrokenProcessPool as error:
            raise PreselError(
                "a worker process died while it checked images, perhaps for want of memory; use fewer workers"
            ) from error


def _look_at_chunk(look: Callable[[Path, str], Found], root: Path, images: list[str]) -> list[Found]:
    return [look(root, image) for image in images]


def _check(root: Path, image: str, min_side: int) -> Checked:
    try:
        path, _ = open_usable(root, image, min_side)
    except BrokenImage as error:
        return Checked(error.reason, None)
    return Checked(None, sha256(path))


def _size(image: Image.Image) -> str:
    return f"{image.width}×{image.height} pixels"
