"""How many processors this process may use."""

import os


def processors() -> int:
    """Counts the processors that the system lets this process use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
