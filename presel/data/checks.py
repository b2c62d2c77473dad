"""Checks of a user's files and of the values in them; callers add the file and the record to the errors."""

import datetime
import json
import re
import reprlib
import stat
from pathlib import Path
from typing import TypeGuard

from presel.data.errors import RecordError
from presel.data.signatures import HEAD_BYTES, what_is_not_data
from presel.errors import PreselError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|(?:data|file|blob):", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Maximum length of a file name on common file systems.
_MAX_NAME_LENGTH = 255

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 100
_REPR.maxlevel = 3


def shown(value: object) -> str:
    """Formats a value for a message: quoted, shortened, control characters escaped."""
    return _REPR.repr(value)


def check_file(path: Path) -> None:
    """Checks that a path is a readable regular file, and neither compressed nor a web page.

    Raises:
        PreselError: If it is not.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as stream:
                found = what_is_not_data(stream.read(HEAD_BYTES))
            reason = f"the file is {found}" if found else None
        elif stat.S_ISDIR(mode):
            reason = "this is a folder; give the file inside it"
        else:
            reason = "this is a pipe, socket or device; give a regular file"
    except FileNotFoundError:
        reason = "there is no such file; check the path"
    except OSError as error:
        reason = f"the file cannot be read ({error.strerror}); check the path and its permissions"
    if reason:
        raise PreselError(f"{path}: {reason}")


def check_text(value: object, name: str, remedy: str, kind: str = "bad value") -> str:
    """Checks that a value is one non-blank line of text.

    Raises:
        RecordError: If it is not; the value's `name` and the `remedy` are in the message.
    """
    if value is None:
        raise RecordError(f"{name} is missing; {remedy}", kind)
    if not isinstance(value, str):
        raise RecordError(f"{name} is {kind_of(value)}, not text; {remedy}", kind)
    if not value.strip():
        raise RecordError(f"{name} is blank; {remedy}", kind)
    if not is_text(value):
        raise RecordError(
            f"{name} has half of a surrogate pair, which is not a character; {remedy}", "half a character"
        )
    if _CONTROL.search(value):
        raise RecordError(
            f"{name} is {shown(value)}, with a line break, tab or other control character; remove it",
            "control character",
        )
    return value


def check_name(value: object, name: str, remedy: str, kind: str = "bad value") -> str:
    """Like `check_text`, but also accepts a whole number, and converts it to text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return check_text(value, name, remedy, kind)


def check_path(
    path: str, name: str, remedy: str = "write it relative to the image folder, with forward slashes"
) -> str:
    """Checks that a path is relative, stays inside its folder, and means the same on every system.

    Raises:
        RecordError: If it does not; the path's `name` and the `remedy` are in the message.
    """
    folders = path.split("/")
    if _ADDRESS.match(path):
        fault = "an address"
        remedy = "save the images as files first, and name their paths in the image folder"
    elif max(map(len, folders)) > _MAX_NAME_LENGTH:
        fault = f"{len(path):,} characters long, too long for a path"
        remedy = "name a file, and write images that are encoded as text into files first"
    elif path.startswith("/") or re.match("[A-Za-z]:", path):
        fault = "an absolute path"
    elif ".." in folders:
        fault = "which may leave the image folder through '..'"
    elif "\\" in path:
        fault = "with a backslash, which image paths may not have"
    else:
        return path
    raise RecordError(f"{name} is {shown(path)}, {fault}; {remedy}", "bad image path")


def is_text(value: object) -> TypeGuard[str]:
    """Whether this is a non-blank string that UTF-8 can encode."""
    if not isinstance(value, str) or not value or value.isspace():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: object) -> str:
    """Describes the type of a value of JSON or parquet, as in "the record is a list"."""
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
    """Resolves an image path that is read from a result, and checks that it stays inside the image folder.

    Results may come from other people, or be stored where others can write. The file may be missing.

    Raises:
        RecordError: If the path leads elsewhere; `source`, the result's name, is in the message.
    """
    name, remedy = f"{source}: an image path", "use results of your own runs only"
    path = (folder / check_path(check_text(image, name, remedy), name, remedy)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RecordError(f"{name} is {shown(image)}, which leads out of {folder} by a link; {remedy}")
    return path
