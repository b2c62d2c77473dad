"""JSON lists and JSON Lines of any size, parsed element by element.

Not `ijson`: errors name line and column, malformed JSON Lines are skipped, repeated keys are reported.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from presel.data.checks import check_file
from presel.data.errors import OnError, RecordError, refuse
from presel.errors import PreselError


class RepeatedKey(dict[str, object]):
    """A JSON object that has a key more than once, or holds one that has; the last value counts.

    Attributes:
        key: The key.
        place: Where the object with that key stands in this one, such as `'conversations' entry 1`; '' for
            this one itself.
    """

    def __init__(self, fields: dict[str, object], key: str, place: str) -> None:
        """Marks an object."""
        super().__init__(fields)
        self.key = key
        self.place = place


class _Repeated(Exception):
    """An object that is being decoded has a key more than once."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _Repeated
    return fields


def _marked(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    return RepeatedKey(fields, Counter(key for key, _ in pairs).most_common(1)[0][0], "")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_MARKING_DECODER = json.JSONDecoder(object_pairs_hook=_marked)


def _decode(text: str, at: int) -> tuple[object, int]:
    """The value that begins at a position, and the position of its end."""
    try:
        return _DECODER.raw_decode(text, at)
    except _Repeated:
        value, end = _MARKING_DECODER.raw_decode(text, at)
    if isinstance(value, dict):
        place, key = next((place, one.key) for place, one in _objects(value) if isinstance(one, RepeatedKey))
        value = RepeatedKey(value, key, place)
    return value, end


def _objects(value: object) -> Iterator[tuple[str, dict[str, object]]]:
    """Yields all objects in a value with their places in it, outer ones first."""
    rest = [("", value)]
    while rest:
        place, one = rest.pop()
        if isinstance(one, dict):
            yield place, one
            rest += [(f"{place} {key!r}".lstrip(), item) for key, item in reversed(one.items())]
        elif isinstance(one, list):
            rest += [(f"{place} entry {at}", item) for at, item in reversed([*enumerate(one)])]


def is_json_lines(path: Path) -> bool:
    """Whether a file's name ends in `.jsonl`."""
    return path.suffix.lower() == ".jsonl"


def elements(annotations: Path, on_error: OnError = refuse) -> Iterator[object]:
    """Yields the elements of a file one by one; the whole text is never in memory.

    Args:
        annotations: A JSON list, or JSON Lines if the name ends in `.jsonl`; UTF-8.
        on_error: Receives the error, with line and column, if the file is malformed. If it returns, JSON
            Lines continue with the next line, and a list ends.

    Yields:
        The elements; an object with a repeated key is a `RepeatedKey`.

    Raises:
        PreselError: If the file cannot be read.
    """

    def report(error: PreselError) -> None:
        on_error(RecordError(str(error), "malformed JSON", str(annotations)))

    check_file(annotations)
    try:
        with annotations.open(encoding="utf-8-sig") as stream:
            if is_json_lines(annotations):
                yield from _json_lines(stream, report)
                return
            try:
                yield from _json_list(stream)
            except PreselError as error:
                report(error)
    except OSError as error:
        raise PreselError(f"{annotations}: the file cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise PreselError(f"{annotations}: the file is not UTF-8; convert it") from None


def _json_lines(stream: TextIO, report: Callable[[PreselError], None]) -> Iterator[object]:
    for number, line in enumerate(map(str.strip, stream), start=1):
        if not line:
            continue
        if line.startswith("["):
            report(PreselError(f"line {number} begins a JSON list; rename the file to end in .json"))
            return
        if line == "{":
            report(PreselError(f"line {number} is only the beginning of a record; write each on one line"))
            return
        try:
            value, end = _decode(line, 0)
            if end < len(line):
                raise json.JSONDecodeError("Extra data", line, end)
        except json.JSONDecodeError as error:
            report(_malformed(number, error.colno, error.msg))
        except (RecursionError, ValueError) as error:
            report(_malformed(number, 1, _message(error)))
        else:
            yield value


def _json_list(stream: TextIO) -> Iterator[object]:
    window = _Window(stream)
    opening = window.peek()
    if not opening:
        raise PreselError("the file is empty; give one with at least one record")
    if opening != "[":
        raise PreselError("the top level is not a list; write the records as one, or name JSON Lines .jsonl")
    window.take()
    mark = ","
    if window.peek() == "]":
        mark = window.take()
    while mark == ",":
        yield window.value()
        mark = window.peek()
        if mark not in (",", "]"):
            raise window.malformed("Expecting ',' delimiter")
        window.take()
    if window.peek():
        raise window.malformed("Extra data")


def _message(error: RecursionError | ValueError) -> str:
    # Python's parser raises a plain ValueError only for integers of thousands of digits.
    return "nested too deeply" if isinstance(error, RecursionError) else "a number too long to be read"


def _malformed(line: int, column: int, message: str) -> PreselError:
    return PreselError(
        f"the JSON is truncated or malformed at line {line} column {column} ({message}); "
        "correct the file or export it again"
    )


class _Window:
    """A sliding window over a JSON text, which grows until the next value is complete."""

    _CHUNK = 1 << 20  # Characters read at once; a record that crosses the edge is parsed twice.
    _NOT_SPACE = re.compile(r"[^ \t\n\r]")

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._text = ""
        self._at = 0
        # Position of the window's start: line breaks before it, and characters since the last of them.
        self._lines = 0
        self._columns = 0

    def peek(self) -> str:
        """Skips white space and returns the next character; '' at the end of the file."""
        while True:
            if found := self._NOT_SPACE.search(self._text, self._at):
                self._at = found.start()
                return found.group()
            self._at = len(self._text)
            if not self._slide():
                return ""

    def take(self) -> str:
        """Consumes the peeked character."""
        self._at += 1
        return self._text[self._at - 1]

    def value(self) -> object:
        """Parses the next value."""
        self.peek()
        while True:
            try:
                value, self._at = _decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # The value may be truncated by the window's edge: try again with more text.
                if not self._slide():
                    raise self.malformed(error.msg, error.pos) from None
            except (RecursionError, ValueError) as error:
                raise self.malformed(_message(error)) from None
            else:
                return value

    def malformed(self, message: str, at: int | None = None) -> PreselError:
        """The error for a position in the window, the current one by default."""
        line, column = self._place(self._at if at is None else at)
        return _malformed(line + 1, column + 1, message)

    def _slide(self) -> bool:
        """Drops the parsed text and reads more; False at the end of the file."""
        rest = len(self._text) - self._at
        # At least doubles the window, so that a long value is parsed again only a few times.
        more = self._stream.read(max(self._CHUNK, rest))
        if not more:
            return False
        self._lines, self._columns = self._place(self._at)
        self._text = self._text[self._at :] + more
        self._at = 0
        return True

    def _place(self, at: int) -> tuple[int, int]:
        breaks = self._text.count("\n", 0, at)
        if not breaks:
            return self._lines, self._columns + at
        return self._lines + breaks, at - self._text.rfind("\n", 0, at) - 1
