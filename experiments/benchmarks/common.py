"""What the benchmarks share: a clock, a table, and the line of JSON at the end.

The benchmarks are run by path, so this module is their neighbor and not part of a package.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from typing import Any, TypeVar

Row = dict[str, Any]
Result = TypeVar("Result")


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Runs something once and takes the wall time in seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


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
    """One line of JSON: the results and the machine."""
    import torch

    machine = {
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }
    return json.dumps({"machine": machine, **results})
