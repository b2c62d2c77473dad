"""The terminal: text is printed literally, one line per string, without control characters."""

import logging
import os
import signal
import sys
from collections.abc import Iterable
from io import StringIO
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.control import Control
from rich.segment import Segment
from rich.text import Text

from presel.console.escaping import visible

# Without a terminal nothing limits the width, and a table squeezed into 80 columns could not be read.
_WIDTH = 160
_RESULTS = logging.getLogger("presel.results")


class PlainConsole(Console):
    """Interprets no markup and no emoji codes, and escapes control characters.

    So file names, file contents and servers' messages need no further care. A style is given as an argument,
    or by a `Text`.
    """

    def __init__(self, **options: Any) -> None:
        """Takes what `rich.console.Console` does."""
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escapes strings; tables also measure them by this method."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escapes objects that are not strings, such as paths."""
        if isinstance(renderable, Text) and not renderable.plain.isprintable():
            renderable = renderable.copy()
            renderable.plain = visible(renderable.plain)
        return super().render(renderable, options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints a result of the command, which the log file of a run holds as well."""
        self.show(*objects, **options)
        # A progress bar prints `Control`s.
        if not any(isinstance(one, Control) for one in objects):
            text = StringIO()
            PlainConsole(file=text, width=_WIDTH).show(*objects)
            for line in filter(None, text.getvalue().splitlines()):
                _RESULTS.info(line)

    def show(self, *objects: Any, **options: Any) -> None:
        """Prints what is logged elsewhere, or not at all."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            raise SystemExit(output_failed(error)) from error

    def on_broken_pipe(self) -> None:
        """Ends with an exit code of its own, unlike rich's 1."""
        self.quiet = True
        raise SystemExit(output_failed(BrokenPipeError()))


def print_text(text: str) -> None:
    """Prints a text of many lines, such as help or JSON, as it is."""
    try:
        print(text, flush=True)
    except OSError as error:
        raise SystemExit(output_failed(error)) from error


def output_failed(error: OSError) -> int:
    """The exit code where the standard output cannot be written; quiet if its reader, as `head`, ended."""
    # What is still buffered would fail again as Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    print_error(f"error: what the command prints cannot be written ({error.strerror}); make room for it")
    return 2


# A program may be started without a standard output.
console = PlainConsole(width=None if sys.stdout and sys.stdout.isatty() else _WIDTH)


def print_error(text: str) -> None:
    """Prints `presel: <text>` as one line on the standard error stream."""
    print(visible(f"presel: {text}"), file=sys.stderr)
