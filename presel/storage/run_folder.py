"""Names of the files in a run's folder, for those who do not read what is in them."""

from contextlib import suppress
from pathlib import Path

RUN_FILE = "run.json"
CONFIG_FILE = ".hydra/config.yaml"


def finished_jobs(sweep: Path) -> dict[Path, int]:
    """The records of finished jobs in a sweep's folder, and when each was written, in nanoseconds."""
    found = {}
    for file in sweep.glob(f"*/{RUN_FILE}"):
        # Another sweep may be replacing it.
        with suppress(FileNotFoundError):
            found[file] = file.stat().st_mtime_ns
    return found
