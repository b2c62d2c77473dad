"""What the benchmarks share: a clock, rows of results, a table, and the line of JSON at the end.

The benchmarks are run by path, so this module is their neighbor and not part of a package.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
Result = TypeVar("Result")


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Runs something once and takes the wall time in seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


class Rows(list[Row]):
    """Rows of results; each is also appended to a file of JSON lines, if one is named, once it is known."""

    def __init__(self, file: Path | None = None) -> None:
        """Takes the file."""
        super().__init__()
        self._file = file

    def add(self, what: str, **values: Any) -> None:
        """Adds a row."""
        self.append({"what": what, **values})
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(self[-1]) + "\n")


def peak_memory() -> float | None:
    """The most GPU memory, in GB, that tensors took since the last call; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def table(rows: list[Row]) -> str:
    """Lays results out in columns."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [
        [f"{row[c]:.4g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns]
        for row in rows
    ]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
    )


def last_line(**results: Any) -> str:
    """One line of JSON: the machine and the results."""
    return json.dumps({"machine": machine(), **results})


def machine() -> Row:
    """What the figures depend on."""
    import torch

    return {
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }
