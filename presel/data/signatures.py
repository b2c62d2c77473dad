"""File types by their first bytes, for messages about files that are not what their names say."""

import codecs
from collections.abc import Mapping
from typing import NamedTuple

# Number of a file's first bytes that are examined.
HEAD_BYTES = 2048


class Kind(NamedTuple):
    """The type of a file.

    Attributes:
        name: Such as `a web page`.
        why: Why it cannot be read as an image; '' if it only stands for another file.
        remedy: How to get a readable image.
    """

    name: str
    why: str
    remedy: str

    def __str__(self) -> str:
        """As in "HEIC, which is not read; convert it to JPEG or PNG"."""
        return f"{', '.join(filter(None, (self.name, self.why)))}; {self.remedy}"


_UNREAD = ("which is not read", "convert it to JPEG or PNG")
_NO_IMAGE = ("not an image", "fetch the image again")

# Signatures of file types: the offset and the bytes.
_Signatures = list[tuple[int, bytes]]

# Formats that `presel.data.decoding` reads, by Pillow's names.
_READ: dict[str, _Signatures] = {
    "JPEG": [(0, b"\xff\xd8\xff")],
    "PNG": [(0, b"\x89PNG\r\n\x1a\n")],
    "GIF": [(0, b"GIF8")],
    "WEBP": [(8, b"WEBP")],
    "TIFF": [(0, b"II*\0"), (0, b"MM\0*")],
    "JPEG2000": [(0, b"\0\0\0\x0cjP  \r\n\x87\n"), (0, b"\xff\x4f\xff\x51")],
    "AVIF": [(4, b"ftypavi")],
}

# All other types, by reason and remedy; the more specific signature first.
_OTHERS: dict[tuple[str, str], dict[str, _Signatures]] = {
    _UNREAD: {
        "HEIC": [(4, b"ftyp" + brand) for brand in (b"hei", b"hev", b"mif1", b"msf1")],
        "a camera's raw file": [(4, b"ftypcrx"), (0, b"FUJIFILMCCD-RAW"), (0, b"IIRO"), (0, b"IIU\0")],
        "JPEG XL": [(0, b"\0\0\0\x0cJXL "), (0, b"\xff\x0a")],
        "PSD": [(0, b"8BPS")],
        "XCF": [(0, b"gimp xcf")],
        "PDF": [(0, b"%PDF-")],
        "PostScript": [(0, b"%!PS"), (0, b"\xc5\xd0\xd3\xc6")],
        "ICO": [(0, b"\0\0\1\0")],
        "ICNS": [(0, b"icns")],
        "OpenEXR": [(0, b"\x76\x2f\x31\x01")],
        "Radiance HDR": [(0, b"#?RADIANCE")],
        "DDS": [(0, b"DDS ")],
        "QOI": [(0, b"qoif")],
        "DICOM": [(128, b"DICM")],
        "a NumPy array": [(0, b"\x93NUMPY")],
    },
    ("not an image", "unpack it"): {
        "a gzip file": [(0, b"\x1f\x8b")],
        "a ZIP file": [(0, b"PK\3\4")],
        "a 7z file": [(0, b"7z\xbc\xaf\x27\x1c")],
        "a RAR file": [(0, b"Rar!")],
        "an xz file": [(0, b"\xfd7zXZ")],
        "a bzip2 file": [(0, b"BZh")],
        "a Zstandard file": [(0, b"\x28\xb5\x2f\xfd")],
        "a tar file": [(257, b"ustar")],
    },
    ("not an image", "save frames of it as images"): {
        "a video (MP4 or MOV)": [(4, b"ftyp")],
        "a video (WebM or Matroska)": [(0, b"\x1a\x45\xdf\xa3")],
        "a video (AVI)": [(8, b"AVI ")],
    },
    ("", "run git lfs pull"): {"a Git LFS pointer": [(0, b"version https://git-lfs.github.com/spec/")]},
    ("", "run git annex get"): {"a git-annex pointer": [(0, b"/annex/objects/")]},
    ("not an image file", "decode it"): {
        "a data URI": [(0, b"data:")],
        "base64 text": [(0, b"/9j/"), (0, b"iVBORw0KGgo"), (0, b"R0lGOD"), (0, b"UklGR")],
    },
}

# Beginnings of text documents, in lower case, after a byte order mark and white space.
_TEXTS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b"{": "JSON",
    b"[": "JSON",
}


# Beginnings of files that are given in place of JSON, CSV and other data, with the remedy.
_NOT_DATA = {
    b"\x1f\x8b": "packed by gzip; unpack it",
    b"PK\x03\x04": "packed by zip, as Excel's files are; unpack it or export it as text",
    b"BZh": "packed by bzip2; unpack it",
    b"\xfd7zXZ\0": "packed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it",
    b"7z\xbc\xaf\x27\x1c": "packed by 7-Zip; unpack it",
    b"<": "a web page or XML; download the file itself",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself by git lfs pull",
}


def what_is_not_data(head: bytes) -> str | None:
    """Type and remedy of a file that is given in place of a data file; None if it may be one."""
    return next((what for beginning, what in _NOT_DATA.items() if head.startswith(beginning)), None)


def read_format(head: bytes) -> str | None:
    """Pillow's name of the format of a file, if it is one of those that are read."""
    return _name_of(head, _READ)


def _name_of(head: bytes, names: Mapping[str, _Signatures]) -> str | None:
    """The first name with a signature that matches."""
    return next((name for name, one in names.items() if any(head.startswith(b, at) for at, b in one)), None)


def what_is(head: bytes) -> Kind | None:
    """The type of a file that is no readable image, by its first `HEAD_BYTES` bytes; None if unknown."""
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if (image := read_format(head)) is not None:
        return Kind(image, "an image", "rename the file accordingly")
    if (late := read_format(text)) is not None:
        before = len(head) - len(text)
        return Kind(f"{late} after {before} bytes that do not belong to it", "", "remove these")
    if head and not head.strip(b"\0"):
        return Kind("zero bytes", *_NO_IMAGE)
    for why_and_remedy, names in _OTHERS.items():
        if (name := _name_of(head, names)) is not None:
            return Kind(name, *why_and_remedy)
    text = text.lower()
    if text.startswith(b"<") and b"<svg" in text:
        return Kind("SVG", *_UNREAD)
    default = "a text file" if _is_text(head) else None
    name = next((name for beginning, name in _TEXTS.items() if text.startswith(beginning)), default)
    return None if name is None else Kind(name, *_NO_IMAGE)


def _is_text(head: bytes) -> bool:
    try:
        # Incremental, because the last character may be truncated.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text) and not any(character < " " and not character.isspace() for character in text)
