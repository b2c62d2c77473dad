"""Tar files, read in bounded memory; a truncated or damaged file is an error.

Python's `tarfile` alone allocates whatever headers claim, and takes damage for the end of the file.
"""

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from presel.data.checks import shown
from presel.data.signatures import HEAD_BYTES, what_is
from presel.errors import PreselError

# Data is read in pieces. A header with longer names is damaged, or a decompression bomb.
_PIECE_BYTES = 1 << 20

_REFETCH = "fetch it again"

# Zeros pad the last record, usually of 10 KB. More of them are left by an interrupted download that had
# allocated the whole file.
_MAX_PADDING = 2 << 20

_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\0\0": lzma.open,
}

# Exceptions of the decompressors and `tarfile` on damaged files.
_DAMAGE = (
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError),
    *(ValueError, OverflowError, RecursionError),
)


class _Pieces:
    """A file that refuses long reads, since `tarfile` reads whatever size a header claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek = file.seek
        self.tell = file.tell
        self._read = file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _PIECE_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)


class _Header(tarfile.TarInfo):
    """A header whose damage is an error: `tarfile` takes most of it for the end of the file."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        # The end-of-archive block, which `tarfile` detects by this error.
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("no end-of-archive block") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


class WholeTar(tarfile.TarFile):
    """A tar file that is iterated over once; damage, or a missing end-of-archive block, is an error."""

    tarinfo = _Header

    def next(self) -> tarfile.TarInfo | None:
        """The next member."""
        info = super().next()
        # `tarfile` would keep millions of members in memory.
        self.members.clear()  # type: ignore[attr-defined]
        if info is None:
            self._check_end()
        elif info.size < 0 or self.offset <= info.offset:
            raise tarfile.ReadError(f"a member of {info.size:,} bytes")
        return info

    def read(self, info: tarfile.TarInfo, max_bytes: int) -> bytes:
        """The content of the current member.

        Raises:
            PreselError: If it has more than `max_bytes`.
        """
        if info.size > max_bytes:
            raise PreselError(
                f"member {shown(info.name)} has {info.size:,} bytes, more than the {max_bytes:,} that are "
                "read; remove it, or fetch the file again if it is damaged"
            )
        stream = self.extractfile(info)
        assert stream is not None, "a regular file"
        content = io.BytesIO()
        shutil.copyfileobj(stream, content, _PIECE_BYTES)
        return content.getvalue()

    def _check_end(self) -> None:
        assert self.fileobj is not None, "open"
        padding = 0
        while piece := self.fileobj.read(_PIECE_BYTES):
            padding += len(piece)
            if piece.strip(b"\0"):
                raise tarfile.ReadError("data after the end-of-archive block")
            if padding > _MAX_PADDING:
                raise tarfile.ReadError(f"more than {_MAX_PADDING:,} bytes of padding")


@contextmanager
def open_tar(path: Path) -> Iterator[WholeTar]:
    """Opens a tar file, compressed or not.

    Raises:
        PreselError: If it cannot be read or is incomplete, here or while it is read in the block.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(0)
            opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
            content = file if opener is None else opener(file)
            kind = what_is(head) if opener is None and head[257:262] != b"ustar" else None
            try:
                archive = WholeTar(fileobj=_Pieces(content))  # type: ignore[arg-type]
            except tarfile.ReadError as error:
                if kind is None:
                    raise
                remedy = _REFETCH if kind.why else kind.remedy
                raise _incomplete(f"it is {kind.name}", remedy) from error
            with archive:
                yield archive
    except OSError as error:
        # Errors of gzip and bzip2 have no number.
        if error.errno is None:
            raise _incomplete(error) from error
        remedy = "check the file and its permissions"
        raise PreselError(f"it cannot be read ({error.strerror}); {remedy}") from error
    except _DAMAGE as error:
        raise _incomplete(error) from error


def _incomplete(why: object, remedy: str = _REFETCH) -> PreselError:
    return PreselError(f"it is not a whole tar file ({why}); {remedy}")
