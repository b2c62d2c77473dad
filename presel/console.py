"""What the user sees: one line a stage, and a bar with the time left on whatever takes a while."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Without a terminal nothing limits the width, and a table squeezed into 80 columns could not be read.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


class ConsoleReporter:
    """Prints `pool  reused` or `pool  3.2 s` for every stage."""

    def started(self, label: str) -> None:
        """Leaves the line to the progress bar; without a terminal, names the stage that begins."""
        if not console.is_terminal:
            console.print(f"[dim]… {label}[/dim]")

    def waiting(self, label: str) -> None:
        """Says why nothing moves."""
        console.print(f"[yellow]…[/yellow] {label:<28} waiting for another run that computes it")

    def finished(self, label: str, key: str, seconds: float | None) -> None:
        """Prints the stage's line."""
        time = "reused" if seconds is None else f"{seconds:.1f} s"
        console.print(f"[green]✓[/green] {label:<28} {time:>9}  [dim]{key}[/dim]")


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar with the time left while the block runs.

    Args:
        label: What is being done.
        total: How many units there are.

    Yields:
        A function that takes how many further units are done.
    """
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda units: bar.advance(task, units)
