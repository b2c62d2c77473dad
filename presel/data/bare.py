"""Image files without metadata, since Pillow refuses a picture where its metadata is large or damaged."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO

# Of a file that is sorted out in memory.
_MAX_BYTES = 100_000_000

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
START_OF_SCAN = 0xDA
_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE


def without_metadata(file: BinaryIO, size: int) -> BinaryIO | None:
    """A PNG or JPEG with nothing but what its pixels and its rotation need.

    Args:
        file: The file.
        size: Its size in bytes.

    Returns:
        None where the file is neither, or is very large.
    """
    file.seek(0)
    start = file.read(len(_PNG))
    if size > _MAX_BYTES:
        return None
    if start == _PNG:
        return _bare_png(file, size)
    if start.startswith(_JPEG):
        return _bare_jpeg(file)
    return None


def _bare_png(file: BinaryIO, size: int) -> BinaryIO:
    bare = io.BytesIO()
    bare.write(_PNG)
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        body = file.read(min(length, size) + 4)
        # Chunks that begin with a capital are critical; Pillow checks those itself.
        if kind[:1].isupper() or (kind in {b"tRNS", b"eXIf"} and _is_whole(kind, body)):
            bare.write(start + body)
    return bare


def _is_whole(kind: bytes, body: bytes) -> bool:
    return zlib.crc32(kind + body[:-4]) == int.from_bytes(body[-4:])


def _bare_jpeg(file: BinaryIO) -> BinaryIO:
    bare = io.BytesIO()
    bare.write(_JPEG)
    for marker, body in jpeg_segments(file):
        if _is_needed(marker, body):
            bare.write(struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body)
    bare.write(file.read())
    return bare


def jpeg_segments(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Markers and contents of a JPEG's segments up to the first scan, whose data the file is left at."""
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
        # It tells how colors are to be understood.
        return body.startswith(b"Adobe") and len(body) >= 12
    return not _APP0 <= marker <= _APP15 and marker != _COMMENT
