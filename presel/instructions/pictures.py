"""Image files as `data:` URLs, the form in which requests and tasks contain them."""

import base64
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from operator import eq
from pathlib import Path

from PIL import Image

from presel.data.decoding import MAX_BYTES, BrokenImage, turn_upright
from presel.data.images import open_image
from presel.instructions.provider import InstructionRequest

_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


def read_image(root: Path, image: str, is_same: Callable[[str], bool]) -> bytes:
    """Reads an image file, and checks that it did not change since the pool was checked.

    Args:
        root: The image folder.
        image: Path relative to it.
        is_same: Whether a SHA-256, in hexadecimal, is that of the pool's image.

    Raises:
        BrokenImage: If there is no such file inside the folder, or its bytes have changed.
    """
    root = Path(os.path.realpath(root))
    path = Path(os.path.realpath(root / image))
    if not path.is_relative_to(root):
        raise BrokenImage("leaves the image folder", path)
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BrokenImage("not a regular file", path)
            if not status.st_size:
                raise BrokenImage("empty file", path)
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BrokenImage("missing", path) from None
    except OSError as error:
        raise BrokenImage(f"cannot be opened ({error.strerror})", path) from None
    if not is_same(hashlib.sha256(content).hexdigest()):
        raise BrokenImage("changed since the pool was checked", path)
    return content


def _open_at_once(path: str, flags: int) -> int:
    """Opens a resolved path: follows no link created since, and does not wait for a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_requested(root: Path, request: InstructionRequest) -> Iterator[tuple[Path, bytes]]:
    """The path and the bytes of each requested image, in order.

    Raises:
        BrokenImage: As in `read_image`; of several images, its reason names the one.
    """
    for file in request.files:
        try:
            content = read_image(root, file.path, partial(eq, file.content))
        except BrokenImage as error:
            where = f" ({file.path})" if request.several else ""
            raise BrokenImage(f"{error.reason}{where}", root / file.path) from None
        yield root / file.path, content


def broken_images(requests: Sequence[InstructionRequest], root: Path) -> dict[str, str]:
    """The requests with an image that cannot be sent, each with the reason."""
    broken: dict[str, str] = {}
    for request in requests:
        try:
            for _ in read_requested(root, request):
                pass
        except BrokenImage as error:
            broken[request.id] = error.reason
    return broken


def data_url(content: bytes, path: Path, side: int | None) -> str:
    """An image file as a `data:` URL.

    The file is sent unchanged if every service can read it and no side is longer than `side` pixels;
    otherwise it is downscaled and converted to an upright JPEG.

    Raises:
        BrokenImage: If it cannot be read.
    """
    media_type = _media_type(content, side)
    if media_type:
        return _url(media_type, content)
    picture = open_image(path, content)
    if side is not None:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=95)
    return _url("image/jpeg", encoded.getvalue())


def _media_type(content: bytes, side: int | None) -> str | None:
    """The media type of an image that can be sent unchanged; None if it must be converted."""
    try:
        with Image.open(BytesIO(content), formats=tuple(_MEDIA_TYPES)) as image:
            upright = turn_upright(image) is None
            fits = side is None or max(image.size) <= side
            plain = image.mode != "CMYK" and getattr(image, "n_frames", 1) == 1
            return _MEDIA_TYPES[image.format or ""] if upright and fits and plain else None
    except MemoryError:
        raise
    # Pillow raises arbitrary exceptions on broken bytes, such as IndexError for a truncated second frame.
    # `open_image` reports what is wrong, if anything is.
    except Exception:
        return None


def _url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
