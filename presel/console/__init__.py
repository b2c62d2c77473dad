"""What the user sees: one line a stage, and a bar with the time left on whatever takes a while."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from presel.console.escaping import visible


class _PlainConsole(Console):
    """Shows any text as it is, on one line: no markup, no emoji codes, control characters written out.

    So names, file contents and messages of servers can be printed without thought. A style is given as an
    argument, or by a `Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Makes strings visible; by this, tables also measure them."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Makes visible what was printed as something else than a string, such as a path."""
        if isinstance(renderable, Text) and not renderable.plain.isprintable():
            renderable = renderable.copy()
            renderable.plain = visible(renderable.plain)
        return super().render(renderable, options)

    def notice(self, text: str) -> None:
        """Prints a line that says what holds the run up, or what the user should know of it."""
        self.print(Text("…", "yellow"), text)


# Without a terminal nothing limits the width, and a table squeezed into 80 columns could not be read.
console = _PlainConsole(soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def print_error(text: str) -> None:
    """Prints `presel: <text>` as one line on the standard error stream."""
    print(visible(f"presel: {text}"), file=sys.stderr)


class ArgumentParser(argparse.ArgumentParser):
    """Names arguments that it cannot use, which may be names of files, as `print_error` does."""

    def error(self, message: str) -> NoReturn:
        """Prints the usage and the message, and exits with 2."""
        super().error(visible(message))


class ConsoleReporter:
    """Prints `pool  reused` or `pool  3.2 s` for every stage."""

    def started(self, label: str) -> None:
        """Leaves the line to the progress bar; without a terminal, names the stage that begins."""
        if not console.is_terminal:
            console.print(f"… {label}", style="dim")

    def waiting(self, label: str) -> None:
        """Says why nothing moves."""
        console.notice(f"{label:<28} waiting for another run that computes it")

    def finished(self, label: str, key: str, seconds: float | None) -> None:
        """Prints the stage's line."""
        time = "reused" if seconds is None else f"{seconds:.1f} s"
        console.print(Text("✓", "green"), f"{label:<28} {time:>9} ", Text(key, "dim"))


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar with the time left while the block runs.

    Args:
        label: What is being done.
        total: How many units there are.

    Yields:
        A function that takes how many further units are done.
    """
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(visible(label), total=total)
        yield lambda units: bar.advance(task, units)
