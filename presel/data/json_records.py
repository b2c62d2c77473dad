"""JSON lists and JSON Lines of any size, parsed element by element."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO, cast

from presel.data.listing import OnError, RecordError, refuse
from presel.errors import PreselError


def is_json_lines(path: Path) -> bool:
    """Whether a file's name says that it is JSON Lines."""
    return path.suffix.lower() == ".jsonl"


def elements(annotations: Path, on_error: OnError = refuse) -> Iterator[object]:
    """Yields what a file's list holds, one after another, so that memory never holds the whole text.

    Args:
        annotations: A JSON list, or JSON Lines if the name ends in `.jsonl`; UTF-8.
        on_error: Told where the file is malformed, line and column. Where it returns, JSON Lines go on with
            the next line, and a list ends.

    Raises:
        PreselError: If the file cannot be read.
    """

    def tell(error: PreselError) -> None:
        on_error(RecordError(str(error), "malformed JSON", str(annotations)))

    try:
        with annotations.open(encoding="utf-8-sig") as stream:
            yield from _json_lines(stream, tell) if is_json_lines(annotations) else _json_list(stream, tell)
    except FileNotFoundError:
        reason = "there is no such file; check the path of the annotations"
    except IsADirectoryError:
        reason = "this is a folder; give the annotation file inside it"
    except OSError as error:
        reason = f"the file cannot be read ({error.strerror}); check the path and its permissions"
    except UnicodeDecodeError:
        reason = "the file is not UTF-8; convert it"
    else:
        return
    raise PreselError(f"{annotations}: {reason}")


def _json_lines(stream: TextIO, tell: Callable[[PreselError], None]) -> Iterator[object]:
    for number, line in enumerate(stream, start=1):
        if line.isspace():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            tell(_malformed(number, error.colno, error.msg))
        except (RecursionError, ValueError) as error:
            tell(_malformed(number, 1, str(error)))
        else:
            yield value


def _json_list(stream: TextIO, tell: Callable[[PreselError], None]) -> Iterator[object]:
    try:
        yield from _list_elements(stream)
    except PreselError as error:
        tell(error)


def _list_elements(stream: TextIO) -> Iterator[object]:
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


def _malformed(line: int, column: int, message: str) -> PreselError:
    return PreselError(
        f"the JSON breaks off or is malformed at line {line} column {column} ({message}); "
        "mend the file or export it again"
    )


class _Window:
    """The part of a JSON text that is being parsed; it slides on as the parser asks for more."""

    _CHUNK = 1 << 20  # Characters read at once; a record that is cut at the edge is parsed twice.
    _NOT_SPACE = re.compile(r"[^ \t\n\r]")
    _DECODER = json.JSONDecoder()

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._text = ""
        self._at = 0
        # Where the window begins: line breaks before it, and characters since the last of them.
        self._lines = 0
        self._columns = 0

    def peek(self) -> str:
        """Goes on to the next character that is not white space; '' at the end of the file."""
        while True:
            found = self._NOT_SPACE.search(self._text, self._at)
            if found:
                self._at = found.start()
                return found.group()
            self._at = len(self._text)
            if not self._slide():
                return ""

    def take(self) -> str:
        """Goes past the character that was peeked at."""
        self._at += 1
        return self._text[self._at - 1]

    def value(self) -> object:
        """Parses the next value."""
        self.peek()
        while True:
            try:
                value, self._at = self._DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # The value may only be cut off by the window's edge: try again with more of it.
                if not self._slide():
                    raise self.malformed(error.msg, error.pos) from None
            except (RecursionError, ValueError) as error:
                raise self.malformed(str(error)) from None
            else:
                return cast(object, value)

    def malformed(self, message: str, at: int | None = None) -> PreselError:
        """The error for a place in the window, the present one by default."""
        line, column = self._place(self._at if at is None else at)
        return _malformed(line + 1, column + 1, message)

    def _slide(self) -> bool:
        """Drops what was parsed and reads on; False at the end of the file."""
        rest = len(self._text) - self._at
        # At least as much as is held, so that a long value is parsed anew only a few times.
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
