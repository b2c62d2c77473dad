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
from typing import BinaryIO, NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError

from presel.data.bare import without_metadata
from presel.data.decoding import MAX_BYTES, BrokenImage, Picture, decode
from presel.data.signatures import HEAD_BYTES, read_format, what_is
from presel.errors import PreselError
from presel.storage.files import sha256

# What names of files in these formats end in, in lower case.
SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs"),
    ]
)

Found = TypeVar("Found")

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


def open_image(path: Path, content: bytes | None = None) -> Image.Image:
    """The image of `open_picture`."""
    return open_picture(path, content).image


def open_picture(path: Path, content: bytes | None = None) -> Picture:
    """Opens an image as upright 8-bit RGB, fully decoded.

    EXIF rotation is applied, transparency is laid on white, 16-bit gray is scaled to 8 bits, CMYK and
    palettes are converted; of an animation the first frame is taken. Metadata never costs a picture.

    Args:
        path: The image file.
        content: Its bytes, where they are read already.

    Raises:
        BrokenImage: If the file is missing, empty, not an image, truncated, too large for the memory that
            one image may take, or in a form without a brightness scale of its own.
    """
    try:
        if content is None:
            _check_file(path)
        # Pillow warns of odd metadata and of sizes that are limited here.
        with (
            path.open("rb") if content is None else BytesIO(content) as file,
            warnings.catch_warnings(action="ignore"),
        ):
            return _decode(file)
    except BrokenImage as error:
        raise BrokenImage(error.reason, path) from None
    except Image.DecompressionBombError:
        raise BrokenImage(f"too large: over {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels", path) from None
    except FileNotFoundError:
        raise BrokenImage("missing", path) from None
    except MemoryError:
        raise
    # Pillow's decoders raise whatever the broken bytes lead them to, not OSError alone.
    except Exception as error:
        raise BrokenImage(_short(error), path) from error


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


def _decode(file: BinaryIO) -> Picture:
    size = file.seek(0, os.SEEK_END)
    try:
        try:
            return decode(file, size)
        except (BrokenImage, Image.DecompressionBombError, MemoryError):
            raise
        except Exception:
            bare = without_metadata(file, size)
            if bare is None:
                raise
            return decode(bare, size)
    except UnidentifiedImageError:
        raise BrokenImage(_unidentified(file)) from None


def _unidentified(file: BinaryIO) -> str:
    """What a file is that Pillow takes for none of the formats that are read."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    name = read_format(head)
    if name is None:
        return str(what_is(head) or "not an image of a known format")
    file.seek(0)
    open_format, _ = Image.OPEN[name]
    try:
        open_format(file, "")
    # The error that Pillow passed over to try the next format.
    except Exception as error:
        why = str(error)
        return why if why.startswith("broken") else f"broken or unusual {name} ({why})"
    return f"broken or unusual {name}"


def _check_file(path: Path) -> None:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise BrokenImage("a folder, not a file")
    # Opening a pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        raise BrokenImage("not an ordinary file")
    if not status.st_size:
        raise BrokenImage("empty file")
    if status.st_size > MAX_BYTES:
        raise BrokenImage(f"too large: a file of {status.st_size:,} bytes")


def _short(error: Exception) -> str:
    if "truncated" in str(error).lower():
        return "truncated"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror})"
    return f"cannot be decoded ({error or type(error).__name__})"


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
