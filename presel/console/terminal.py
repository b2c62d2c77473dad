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
# Exit code of a program that a closed pipe ended, as shells give it.
BROKEN_PIPE = 128 + signal.SIGPIPE


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
        super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Ends quietly where the reader, such as `head`, closes the pipe; not by 1, which means something."""
        self.quiet = True
        discard_output()
        raise SystemExit(BROKEN_PIPE)


def discard_output() -> None:
    """Sends what is still buffered for the standard output nowhere, since writing it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# A program may be started without a standard output.
console = PlainConsole(width=None if sys.stdout and sys.stdout.isatty() else _WIDTH)


def print_error(text: str) -> None:
    """Prints `presel: <text>` as one line on the standard error stream."""
    print(visible(f"presel: {text}"), file=sys.stderr)
