"""Images as text, for those who are asked over the wire."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from presel.data.images import open_image, turn_upright

_MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


def data_url(path: Path, side: int | None) -> str:
    """An image file as a `data:` URL.

    The file is sent as it is where every service can show it; otherwise a JPEG of how it looks is.

    Args:
        path: The image file.
        side: Longer images are shrunk to this many pixels; None for no limit.

    Raises:
        BrokenImage: If it cannot be read.
    """
    media_type = _media_type(path, side)
    if media_type:
        return _url(media_type, path.read_bytes())
    picture = open_image(path)
    if side is not None:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=95)
    return _url("image/jpeg", encoded.getvalue())


def with_picture(messages: Sequence[dict[str, str]], url: str) -> list[dict[str, Any]]:
    """Chat messages whose last one shows an image before its text.

    Args:
        messages: The messages, the last of them the user's.
        url: Where the image is, or the image itself.
    """
    *before, request = messages
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": request["content"]}]
    return [*before, {"role": request["role"], "content": parts}]


def _media_type(path: Path, side: int | None) -> str | None:
    """What an image is that can be sent as it is; None where it has to be encoded anew."""
    try:
        with Image.open(path, formats=tuple(_MEDIA_TYPES)) as image:
            upright = turn_upright(image) is None
            fits = side is None or max(image.size) <= side
            plain = image.mode != "CMYK" and getattr(image, "n_frames", 1) == 1
            return _MEDIA_TYPES[image.format or ""] if upright and fits and plain else None
    except MemoryError:
        raise
    # Pillow raises whatever broken bytes lead it to, such as IndexError where a second frame is cut off.
    # Whoever opens the image next says what is wrong, if anything is.
    except Exception:
        return None


def _url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
