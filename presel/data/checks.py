"""Checks of single values that a user's files hold; whoever calls them adds the file and the place."""

import json
import re
from typing import TypeGuard

from presel.data.listing import RecordError


def check_text(value: object, name: str, remedy: str, kind: str = "bad value") -> str:
    """Makes sure that a value is text with something in it.

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
    if path.startswith("/") or re.match("[A-Za-z]:", path):
        raise RecordError(f"{name} is {path!r}, an absolute path; {remedy}", "bad image path")
    if ".." in path.split("/"):
        raise RecordError(
            f"{name} is {path!r}, which may leave the image folder through '..'; {remedy}", "bad image path"
        )
    if "\\" in path or "\0" in path:
        raise RecordError(
            f"{name} is {path!r}, with a character no image path may have; {remedy}", "bad image path"
        )
    return path


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
    """Says what a JSON value is, as in "the record is a list"."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text"}
    return names.get(type(value), "a number")
