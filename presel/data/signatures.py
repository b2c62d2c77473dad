"""File types by their first bytes, for messages about files that are not what their names say."""

import codecs
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


# Offset of a signature, the signature, and the name of the file type.
_Signatures = list[tuple[int, bytes, str]]

_UNREAD = ("which is not read", "convert it to JPEG or PNG")
_NO_IMAGE = ("not an image", "fetch the image again")

# Formats that `presel.data.decoding` reads, by Pillow's names.
_READ: _Signatures = [
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"),
    (4, b"ftypavi", "AVIF"),
]

# All other types, by reason and remedy; the more specific signature first.
_OTHERS: dict[tuple[str, str], _Signatures] = {
    _UNREAD: [
        *((4, b"ftyp" + brand, "HEIC") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
        (4, b"ftypcrx", "a camera's raw file"),
        (0, b"FUJIFILMCCD-RAW", "a camera's raw file"),
        (0, b"IIRO", "a camera's raw file"),
        (0, b"IIU\0", "a camera's raw file"),
        (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
        (0, b"\xff\x0a", "JPEG XL"),
        (0, b"8BPS", "PSD"),
        (0, b"gimp xcf", "XCF"),
        (0, b"%PDF-", "PDF"),
        (0, b"%!PS", "PostScript"),
        (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
        (0, b"\0\0\1\0", "ICO"),
        (0, b"icns", "ICNS"),
        (0, b"\x76\x2f\x31\x01", "OpenEXR"),
        (0, b"#?RADIANCE", "Radiance HDR"),
        (0, b"DDS ", "DDS"),
        (0, b"qoif", "QOI"),
        (128, b"DICM", "DICOM"),
        (0, b"\x93NUMPY", "a NumPy array"),
    ],
    ("not an image", "unpack it"): [
        (0, b"\x1f\x8b", "a gzip file"),
        (0, b"PK\3\4", "a ZIP file"),
        (0, b"7z\xbc\xaf\x27\x1c", "a 7z file"),
        (0, b"Rar!", "a RAR file"),
        (0, b"\xfd7zXZ", "an xz file"),
        (0, b"BZh", "a bzip2 file"),
        (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
        (257, b"ustar", "a tar file"),
    ],
    ("not an image", "save frames of it as images"): [
        (4, b"ftyp", "a video (MP4 or MOV)"),
        (0, b"\x1a\x45\xdf\xa3", "a video (WebM or Matroska)"),
        (8, b"AVI ", "a video (AVI)"),
    ],
    ("", "run git lfs pull"): [(0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer")],
    ("", "run git annex get"): [(0, b"/annex/objects/", "a git-annex pointer")],
    ("not an image file", "decode it"): [
        (0, b"data:", "a data URI"),
        (0, b"/9j/", "base64 text"),
        (0, b"iVBORw0KGgo", "base64 text"),
        (0, b"R0lGOD", "base64 text"),
        (0, b"UklGR", "base64 text"),
    ],
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
    return next((name for offset, beginning, name in _READ if head.startswith(beginning, offset)), None)


def what_is(head: bytes) -> Kind | None:
    """The type of a file that cannot be read as an image.

    Args:
        head: Its first `HEAD_BYTES` bytes.

    Returns:
        None if it is unknown.
    """
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if (image := read_format(head)) is not None:
        return Kind(image, "an image", "rename the file accordingly")
    if (late := read_format(text)) is not None:
        return Kind(
            f"{late} after {len(head) - len(text)} bytes that do not belong to it", "", "remove these"
        )
    if head and not head.strip(b"\0"):
        return Kind("zero bytes", *_NO_IMAGE)
    for said, signatures in _OTHERS.items():
        for offset, beginning, name in signatures:
            if head.startswith(beginning, offset):
                return Kind(name, *said)
    text = text.lower()
    if text.startswith(b"<") and b"<svg" in text:
        return Kind("SVG", *_UNREAD)
    for beginning, name in _TEXTS.items():
        if text.startswith(beginning):
            return Kind(name, *_NO_IMAGE)
    return Kind("text", *_NO_IMAGE) if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    try:
        # Incremental, because the last character may be truncated.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text) and not any(character < " " and not character.isspace() for character in text)
