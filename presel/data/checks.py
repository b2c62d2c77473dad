"""Checks of a user's files and of the values in them; whoever checks a value adds the file and the place."""

import datetime
import json
import re
import reprlib
import stat
from pathlib import Path
from typing import TypeGuard

from presel.data.listing import RecordError
from presel.errors import PreselError

# How files begin that are not what their names say.
_OTHER_FORMATS = {
    b"\x1f\x8b": "packed by gzip; unpack it",
    b"PK\x03\x04": "packed by zip, as Excel's files are; unpack it or export it as text",
    b"BZh": "packed by bzip2; unpack it",
    b"\xfd7zXZ\0": "packed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it",
    b"7z\xbc\xaf\x27\x1c": "packed by 7-Zip; unpack it",
    b"<": "a web page or XML; download the file itself",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself by git lfs pull",
}
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|(?:data|file|blob):", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# The longest name of a file on the usual file systems.
_LONGEST_NAME = 255

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 100
_REPR.maxlevel = 3


def shown(value: object) -> str:
    """Writes a value of a file as messages show it: quoted, shortened, control characters escaped."""
    return _REPR.repr(value)


def check_file(path: Path) -> None:
    """Makes sure that a path names an ordinary file that can be read, without waiting for a pipe.

    Raises:
        PreselError: If it does not, or the file is packed.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as stream:
                beginning = stream.read(max(map(len, _OTHER_FORMATS)))
            found = [said for mark, said in _OTHER_FORMATS.items() if beginning.startswith(mark)]
            reason = f"the file is {found[0]}" if found else None
        elif stat.S_ISDIR(mode):
            reason = "this is a folder; give the file inside it"
        else:
            reason = "this is a pipe, socket or device; give an ordinary file"
    except FileNotFoundError:
        reason = "there is no such file; check the path"
    except OSError as error:
        reason = f"the file cannot be read ({error.strerror}); check the path and its permissions"
    if reason:
        raise PreselError(f"{path}: {reason}")


def check_text(value: object, name: str, remedy: str, kind: str = "bad value") -> str:
    """Makes sure that a value is one line of text with something in it.

    Args:
        value: What the file holds.
        name: What the error calls it.
        remedy: What the error tells the user to do.
        kind: What the error calls all mistakes of this sort.

    Raises:
        RecordError: If it is not.
    """
    if value is None:
        raise RecordError(f"{name} is missing; {remedy}", kind)
    if not isinstance(value, str):
        raise RecordError(f"{name} is {kind_of(value)}, not text; {remedy}", kind)
    if not value.strip():
        raise RecordError(f"{name} is blank; {remedy}", kind)
    if not is_text(value):
        raise RecordError(
            f"{name} has half of a surrogate pair, which is no character; {remedy}", "half a character"
        )
    if _CONTROL.search(value):
        raise RecordError(
            f"{name} is {shown(value)}, with a line break, tab or other control character; take it out",
            "control character",
        )
    return value


def check_name(value: object, name: str, remedy: str, kind: str = "bad value") -> str:
    """Like `check_text`, but a whole number will do as well, and is written out."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return check_text(value, name, remedy, kind)


def check_path(
    path: str, name: str, remedy: str = "write it relative to the image folder, with forward slashes"
) -> str:
    """Makes sure that a path is relative, stays inside its folder, and means the same on every system.

    Args:
        path: What the file holds.
        name: What the error calls it.
        remedy: What the error tells the user to do.

    Raises:
        RecordError: If it does not.
    """
    folders = path.split("/")
    if _ADDRESS.match(path):
        fault = "an address"
        remedy = "save the images as files first, and name their paths in the image folder"
    elif max(map(len, folders)) > _LONGEST_NAME:
        fault = f"{len(path):,} characters long, too long for a path"
        remedy = "name a file, and write images that are encoded as text into files first"
    elif path.startswith("/") or re.match("[A-Za-z]:", path):
        fault = "an absolute path"
    elif ".." in folders:
        fault = "which may leave the image folder through '..'"
    elif "\\" in path:
        fault = "with a character no image path may have"
    else:
        return path
    raise RecordError(f"{name} is {shown(path)}, {fault}; {remedy}", "bad image path")


def is_text(value: object) -> TypeGuard[str]:
    """Tells whether this is a string with something in it that UTF-8 can write down."""
    if not isinstance(value, str) or not value or value.isspace():
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: object) -> str:
    """Says what a value of JSON or parquet is, as in "the record is a list"."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    kinds = {
        dict: "an object",
        list: "a list",
        str: "text",
        bytes: "bytes",
        datetime.date | datetime.time | datetime.timedelta: "a date or time",
    }
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "a number")


def check_read_back(folder: Path, image: object, source: str) -> Path:
    """Makes sure that an image path that a result holds leads to a file in the image folder.

    Results may come from others, or have lain where others can write.

    Args:
        folder: The image folder.
        image: What the result holds.
        source: What the error calls the result.

    Returns:
        Where the file would lie, all links resolved; whether there is one is not looked at.

    Raises:
        RecordError: If the path leads elsewhere.
    """
    name, remedy = f"{source}: an image path", "use results of your own runs only"
    path = (folder / check_path(check_text(image, name, remedy), name, remedy)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RecordError(f"{name} is {shown(image)}, which leads out of {folder} by a link; {remedy}")
    return path
