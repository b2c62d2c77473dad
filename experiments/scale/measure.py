"""Selection of a drawn pool by the stages of the product: time, memory and disk by size, out of core.

    python -m experiments.scale.measure --folder FOLDER [--images 100000 1000000 10000000] [--tasks 10 191]

Prints a table and, last, one line of JSON. Every size is measured in a process of its own. What is killed
goes on with the same command; a stage that was interrupted is marked, since its figures cover the rest only.
FOLDER takes twice the features, 31 GB for ten million images, while stages run, and is left as it is.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from experiments.scale.drawn import DrawnFeatures, DrawnPool, DrawnRelevance, MergedTasks
from presel.selection.threads import cpu_count
from presel.stages.centrality import CentralityStage, Neighbors
from presel.stages.clusters import Clustering, DiscoveredClustersStage
from presel.stages.reference import ReferenceStage
from presel.stages.selection import SelectionStage
from presel.storage.stage import Stage
from presel.storage.store import Store
from presel.strategies.presel import PreSel

Row = dict[str, Any]

BUDGET = 0.15
# Tasks of the drawn pool; fewer are made by merging them, so that features are drawn once.
DRAWN_TASKS = 191
_POLL_SECONDS = 0.1


def main() -> None:
    """Reads the command line, measures what is not measured yet, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, DRAWN_TASKS])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(options.folder, options.images[0], options.tasks[0])
        return
    for images in options.images:
        for tasks in options.tasks:
            command = [sys.executable, "-m", "experiments.scale.measure", "--here"]
            command += ["--folder", options.folder, "--images", images, "--tasks", tasks]
            subprocess.run([str(word) for word in command], check=True)
    rows = [row for row in measured(options.folder) if row["tasks"] in options.tasks]
    totals = [total(rows, images, tasks) for tasks in options.tasks for images in options.images]
    print(table(totals))
    exponents = {tasks: exponent([row for row in totals if row["tasks"] == tasks]) for tasks in options.tasks}
    machine = {"processors": cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")}
    print(json.dumps({"machine": machine, "exponents": exponents, "totals": totals, "stages": rows}))


def stages(images: int, tasks: int) -> list[Stage[Any]]:
    """The stages of a selection, inputs first."""
    drawn = DrawnPool(n_images=images, n_tasks=DRAWN_TASKS)
    features = DrawnFeatures(pool=drawn)
    pool = MergedTasks(pool=drawn, n_tasks=tasks)
    reference = ReferenceStage(pool=pool, share=0.05, seed=0)
    relevance = DrawnRelevance(pool=pool, reference=reference)
    clusters = DiscoveredClustersStage(features=features, clustering=Clustering(), tasks=pool)
    centrality = CentralityStage(clusters=clusters, reference=reference, neighbors=Neighbors())
    needed = {"reference": reference, "relevance": relevance, "centrality": centrality}
    selection = SelectionStage(strategy=PreSel(), pool=pool, budget=BUDGET, seed=0, needed=needed)
    return [drawn, features, pool, reference, relevance, clusters, centrality, selection]


def measure(folder: Path, images: int, tasks: int) -> None:
    """Computes the missing stages, and appends a row for each to `measured.jsonl`."""
    store = Store(folder)
    usage = Usage(folder)
    for stage in stages(images, tasks):
        if store.has(stage):
            continue
        resumed = store.folder(stage).exists()
        load, before = os.getloadavg()[0], os.times()
        usage.reset()
        store.ensure(stage)
        after = os.times()
        row = {
            "images": images,
            "tasks": tasks,
            "stage": stage.name,
            "seconds": after.elapsed - before.elapsed,
            "cpu_seconds": after.user + after.system - before.user - before.system,
            **usage.peak(),
            "load": load,
            "resumed": resumed,
        }
        with (folder / "measured.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


class Usage:
    """The most memory and disk that stages take, in GB, looked at several times a second.

    Memory is that of this process, which starts no other: `memory_gb` with the pages of files that it has
    mapped, which the system can take back, and `own_memory_gb` without.
    """

    def __init__(self, folder: Path) -> None:
        """Starts to look; `folder` is what takes disk."""
        self._folder = folder
        self.reset()
        threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        """Forgets what was the most."""
        self._peak = {"memory_gb": 0.0, "own_memory_gb": 0.0, "disk_gb": 0.0}

    def peak(self) -> dict[str, float]:
        """The most since then."""
        return dict(self._peak)

    def _watch(self) -> None:
        while True:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            own, mapped = (int(status[name].split()[0]) / 1e6 for name in ("RssAnon", "RssFile"))
            self._at_least(memory_gb=own + mapped, own_memory_gb=own, disk_gb=_size(self._folder) / 1e9)
            time.sleep(_POLL_SECONDS)

    def _at_least(self, **found: float) -> None:
        for name, value in found.items():
            self._peak[name] = max(self._peak[name], value)


def _size(folder: Path) -> int:
    size = 0
    # Passes over folders that are removed meanwhile, as `Path.rglob` does not.
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(parent, name).stat().st_blocks * 512
    return size


def measured(folder: Path) -> list[Row]:
    """The rows of all runs so far."""
    return [json.loads(line) for line in (folder / "measured.jsonl").read_text().splitlines()]


def total(rows: list[Row], images: int, tasks: int) -> Row:
    """One size: seconds of each stage of the selection, and what they take together."""
    own = {row["stage"]: row for row in rows if (row["images"], row["tasks"]) == (images, tasks)}
    chosen = [own[name] for name in ("reference", "clusters", "centrality", "selection")]
    return {
        "images": images,
        "tasks": tasks,
        **{row["stage"]: round(row["seconds"], 1) for row in chosen},
        "seconds": round(sum(row["seconds"] for row in chosen), 1),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in chosen), 1),
        **{
            what: round(max(row[what] for row in chosen), 2)
            for what in ("memory_gb", "own_memory_gb", "disk_gb")
        },
        "load": round(max(row["load"] for row in chosen), 1),
        "resumed": any(row["resumed"] for row in chosen),
    }


def exponent(totals: list[Row]) -> Row | None:
    """Growth of time with the number of images: the slope of the logarithms, by least squares."""
    if len(totals) < 2:
        return None
    logs = {what: [math.log(row[what]) for row in totals] for what in ("images", "seconds", "cpu_seconds")}
    return {
        what: round(float(np.polyfit(logs["images"], logs[what], 1)[0]), 3)
        for what in ("seconds", "cpu_seconds")
    }


def table(rows: list[Row]) -> str:
    """Lays rows out in columns."""
    cells = [
        list(rows[0]),
        *([f"{value:,}" if type(value) is int else str(value) for value in row.values()] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
    )


if __name__ == "__main__":
    main()
