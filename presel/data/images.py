"""Image files: opened as upright 8-bit RGB, mapped over in worker processes, and fingerprinted."""

import hashlib
import math
import multiprocessing
import os
import signal
import stat
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from multiprocessing.connection import wait
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import Image, UnidentifiedImageError

from presel.data.decoding import MAX_BYTES, BrokenImage, Picture, decode, decoded_size
from presel.data.signatures import HEAD_BYTES, read_format, what_is
from presel.data.strip_metadata import without_metadata
from presel.errors import PreselError

# File name suffixes of the supported formats, in lower case.
SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs"),
    ]
)

Found = TypeVar("Found")

# Images sent to a worker process together: enough to hide the overhead, few enough for smooth progress.
_CHUNK = 64
# How the reason begins why an image was refused before it was read.
UNOPENED = "cannot be opened"


class WorkerDied(PreselError):
    """A worker process ended in the middle of its work."""


def open_image(path: Path, content: bytes | None = None) -> Image.Image:
    """The image that `open_picture` opens."""
    return open_picture(path, content).image


def open_picture(path: Path, content: bytes | None = None) -> Picture:
    """Opens an image file, or its `content` if that is read already, as upright 8-bit RGB, fully decoded.

    EXIF rotation is applied, transparency is composited onto white, 16-bit gray is scaled to 8 bits, CMYK and
    palettes are converted; of an animation the first frame is used. Damaged metadata is ignored.

    Raises:
        BrokenImage: If the file is missing, empty, not an image, truncated, too large for the memory that
            one image may take, or has pixels without a defined white (floating point, 32-bit).
    """
    try:
        if content is None:
            _check_file(path)
        # Pillow warns about odd metadata, and about sizes that are limited here.
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
    # Pillow's decoders raise arbitrary exceptions on broken bytes, not only OSError.
    except Exception as error:
        raise BrokenImage(_short(error), path) from error


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of what `open_image` returns, in pixels, read from the file's header.

    Raises:
        BrokenImage: As `open_image`.
    """
    try:
        _check_file(path)
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            return decoded_size(file, path.stat().st_size)
    # Opening the image says what is wrong, or reads what Pillow cannot without help.
    except Exception:
        return open_image(path).size


def open_usable(root: Path, image: str, min_side: int) -> tuple[Path, Picture]:
    """Opens an image of a pool, and resolves its path.

    Args:
        root: The image folder, all links resolved.
        image: Path relative to it.
        min_side: Smallest width and height that is usable, in pixels.

    Raises:
        BrokenImage: If the image cannot be used.
    """
    path = Path(os.path.realpath(root / image))
    if not path.is_relative_to(root):
        raise BrokenImage("leaves the image folder", path)
    picture = open_picture(path)
    if min(picture.image.size) < min_side:
        raise BrokenImage(f"too small: {picture.image.width}×{picture.image.height} pixels", path)
    return path, picture


def map_images(
    root: Path,
    images: Sequence[str],
    function: Callable[[Path, str], Found],
    workers: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Found]:
    """Applies a function to every image of a pool.

    Args:
        root: The image folder.
        images: Paths relative to it; repeated ones are processed once.
        function: Takes the folder, all links resolved, and one path; picklable.
        workers: Number of worker processes; 0 uses this process. The result does not depend on it.
        on_progress: Called with the number of `images` finished since the last call.

    Returns:
        The function's result for each image.

    Raises:
        PreselError: If there is no such folder, or a worker process dies.
    """
    check_root(root)
    times = Counter(images)
    results: dict[str, Found] = {}
    apply = partial(function, Path(os.path.realpath(root)))
    for image, found in zip(times, map_in_order(apply, list(times), workers), strict=True):
        results[image] = found
        if on_progress is not None:
            on_progress(times[image])
    return [results[image] for image in images]


def image_fingerprint(root: Path, images: Sequence[str]) -> str:
    """A digest of a pool's image files that does not read them, and does not depend on the folder's place.

    Returns:
        SHA-256, in hexadecimal, over each path with its file's size and time of change, or its absence.

    Raises:
        PreselError: If there is no such folder.
    """
    check_root(root)
    return fingerprint((image, root / image) for image in sorted(set(images)))


def fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    """A digest as in `image_fingerprint`, from the name of each file in the digest, and its path."""
    digest = hashlib.sha256()
    for name, file in files:
        try:
            status = file.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):
            state = "absent"
        digest.update(f"{name}\0{state}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def check_root(root: Path) -> None:
    """Raises a `PreselError` if there is no such image folder."""
    if not root.is_dir():
        raise PreselError(f"{root}: there is no such image folder; give the one that image paths start from")


def _decode(file: BinaryIO) -> Picture:
    size = file.seek(0, os.SEEK_END)
    try:
        try:
            return decode(file, size)
        except (BrokenImage, Image.DecompressionBombError, MemoryError):
            raise
        except Exception:
            if (stripped := without_metadata(file, size)) is None:
                raise
            return decode(stripped, size)
    except UnidentifiedImageError:
        raise BrokenImage(_unidentified(file)) from None


def _unidentified(file: BinaryIO) -> str:
    """Describes a file that Pillow recognizes as none of the supported formats."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    name = read_format(head)
    if name is None:
        return str(what_is(head) or "not an image of a known format")
    file.seek(0)
    open_format, _ = Image.OPEN[name]
    try:
        open_format(file, "")
    # The error that Pillow ignored to try the next format.
    except Exception as error:
        why = str(error)
        return why if why.startswith("broken") else f"broken or unusual {name} ({why})"
    return f"broken or unusual {name}"


def _check_file(path: Path) -> None:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise BrokenImage("a folder, not a file")
    # Opening a pipe would block.
    if not stat.S_ISREG(status.st_mode):
        raise BrokenImage("not a regular file")
    if not status.st_size:
        raise BrokenImage("empty file")
    if status.st_size > MAX_BYTES:
        raise BrokenImage(f"too large: a file of {status.st_size:,} bytes")


def _short(error: Exception) -> str:
    if "truncated" in str(error).lower():
        return "truncated"
    if isinstance(error, OSError) and error.strerror:
        return f"{UNOPENED} ({error.strerror})"
    return f"cannot be decoded ({error or type(error).__name__})"


def map_in_order(function: Callable[[str], Found], images: list[str], workers: int) -> Iterator[Found]:
    """Applies a function to every image, in this process or in workers; see `map_images`."""
    if workers == 0 or not images:
        yield from map(function, images)
        return
    # Spawned, because a fork of a process with threads (torch, a progress bar) can deadlock.
    context = multiprocessing.get_context("spawn")
    n_chunks = math.ceil(len(images) / _CHUNK)
    n_workers = min(workers, n_chunks)
    with ProcessPoolExecutor(n_workers, mp_context=context, initializer=_watch_parent) as executor:
        try:
            with _ignoring_interrupts():
                found = executor.map(function, images, chunksize=_CHUNK)
            yield from found
        except BrokenProcessPool as error:
            raise WorkerDied(
                "a worker process died while it checked images, perhaps for lack of memory, if its own "
                "message above names no cause; use fewer workers: the same command continues where it stopped"
            ) from error


def _watch_parent() -> None:
    """Ends this worker process when its parent has ended, even one that was killed and could tell nobody."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        # Nobody is left to take the worker's results, and its main thread may wait for work forever.
        os._exit(1)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C, which a terminal sends to all; this one stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
