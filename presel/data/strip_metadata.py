"""Removes metadata from image files: Pillow rejects an image if its metadata is large or damaged."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO

# Maximum size of a file that is rewritten in memory.
_MAX_BYTES = 100_000_000

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
START_OF_SCAN = 0xDA
_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE


def without_metadata(file: BinaryIO, size: int) -> BinaryIO | None:
    """A copy of a PNG or JPEG with the data for its pixels and its rotation only.

    None if the file is neither, or if its size in bytes is very large.
    """
    file.seek(0)
    start = file.read(len(_PNG))
    if size > _MAX_BYTES:
        return None
    if start == _PNG:
        return _strip_png(file, size)
    if start.startswith(_JPEG):
        return _strip_jpeg(file)
    return None


def _strip_png(file: BinaryIO, size: int) -> BinaryIO:
    stripped = io.BytesIO()
    stripped.write(_PNG)
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        body = file.read(min(length, size) + 4)
        # Chunks whose type begins with a capital are critical; Pillow checks those itself.
        if kind[:1].isupper() or (kind in {b"tRNS", b"eXIf"} and _is_whole(kind, body)):
            stripped.write(start + body)
    return stripped


def _is_whole(kind: bytes, body: bytes) -> bool:
    return zlib.crc32(kind + body[:-4]) == int.from_bytes(body[-4:])


def _strip_jpeg(file: BinaryIO) -> BinaryIO:
    stripped = io.BytesIO()
    stripped.write(_JPEG)
    for marker, body in jpeg_segments(file):
        if _is_needed(marker, body):
            stripped.write(struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body)
    stripped.write(file.read())
    return stripped


def jpeg_segments(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Markers and contents of a JPEG's segments up to the first scan; leaves the file at the scan's data."""
    file.seek(len(_JPEG))
    while len(start := file.read(4)) == 4:
        _, marker, length = struct.unpack(">BBH", start)
        yield marker, file.read(max(0, length - 2))
        if marker == START_OF_SCAN:
            return


def _is_needed(marker: int, body: bytes) -> bool:
    if marker == _APP1:
        return body.startswith(b"Exif\0\0")
    if marker == _APP14:
        # It defines the color transform.
        return body.startswith(b"Adobe") and len(body) >= 12
    return not _APP0 <= marker <= _APP15 and marker != _COMMENT
