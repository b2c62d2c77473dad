"""The stages of a run, one line each, and the progress within one: a bar, or lines in a pipe and the log."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from presel.console.escaping import visible
from presel.console.messages import shows_progress
from presel.console.terminal import console

_log = logging.getLogger(__name__)


class ConsoleReporter:
    """Prints `pool  reused` or `pool  3.2 s` for every stage."""

    def started(self, label: str) -> None:
        """Names the stage that begins, unless a terminal shows its progress bar."""
        _log.info(f"… {label}", extra={"styled": (Text(f"… {label}", "dim"),), "bar": True})

    def waiting(self, label: str) -> None:
        """Says that another run computes the stage."""
        _log.warning(f"{label:<28} waiting for another run that computes it")

    def finished(self, label: str, key: str, seconds: float | None) -> None:
        """Prints the stage's line."""
        time = "reused" if seconds is None else f"{seconds:.1f} s"
        line = f"{label:<28} {time:>9} "
        _log.info(f"✓ {line} {key}", extra={"styled": (Text("✓", "green"), line, Text(key, "dim"))})


@contextmanager
def progress(label: str, total: int, line_every_s: float = 30) -> Iterator[Callable[[int], None]]:
    """Shows the progress of the block.

    Args:
        label: What is being done.
        total: Number of units.
        line_every_s: Seconds between two lines, where no terminal shows the bar and in the log file.

    Yields:
        A function that takes the number of further units done.
    """
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    hidden = not (console.is_terminal and shows_progress())
    ended = threading.Event()
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        bar.add_task(visible(label), total=total)
        (task,) = bar.tasks

        def write_lines() -> None:
            while not ended.wait(line_every_s):
                _log.info(progress_line(task), extra={"bar": True})

        # A thread of its own, because a single unit may take longer than the interval.
        threading.Thread(target=write_lines, daemon=True).start()
        try:
            yield lambda units: bar.advance(task.id, units)
        finally:
            ended.set()


def progress_line(task: Task) -> str:
    """How much is done, what share that is, and how much time is left."""
    assert task.total is not None
    left = ""
    if task.completed and task.elapsed:
        # Over the whole time; rich's own estimate is made of the last seconds, and a unit may take minutes.
        seconds = task.elapsed / task.completed * (task.total - task.completed)
        left = f", {timedelta(seconds=round(seconds))} left"
    return f"  {task.description}: {task.completed:,.0f} of {task.total:,.0f} ({task.percentage:.0f} %){left}"
