"""The stages of a run, one line each."""

import logging

from rich.text import Text

_log = logging.getLogger(__name__)


class ConsoleReporter:
    """Prints `pool  reused` or `pool  3.2 s` for every stage."""

    def started(self, label: str) -> None:
        """Leaves the line to the progress bar; without a terminal, names the stage that begins."""
        _log.info(f"… {label}", extra={"styled": (Text(f"… {label}", "dim"),), "bar": True})

    def waiting(self, label: str) -> None:
        """Says why nothing moves."""
        _log.warning(f"{label:<28} waiting for another run that computes it")

    def finished(self, label: str, key: str, seconds: float | None) -> None:
        """Prints the stage's line."""
        time = "reused" if seconds is None else f"{seconds:.1f} s"
        line = f"{label:<28} {time:>9} "
        _log.info(f"✓ {line} {key}", extra={"styled": (Text("✓", "green"), line, Text(key, "dim"))})
