"""What a sweep over temperature, neighbors and cluster size costs beside one run.

Command: `python experiments/benchmarks/sweep.py`. Both start from an empty store, by the real command line,
up to the selection: one run, and 10 values of τ × 3 of k × 3 of images per cluster. Holds the seconds of all
the sweep's stages against those of its stages up to the features, which are those of one run, and the wall
time of its process against that of the single run's; counts what each stage computed. Ends in one line of
JSON. `--size` makes the pool smaller, to try it out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from common import Row, last_line, table

GRID = (
    "tau.value=0.05,0.1,0.15,0.2,0.25,0.3,0.4,0.5,1,2",
    "neighbors.k=3,5,10",
    "cluster.images_per_cluster=50,100,200",
)
_AFTER_FEATURES = {"clusters", "centrality", "selection"}


def run(folder: Path, *overrides: str) -> Row:
    """Runs the command in an empty folder.

    Returns:
        Its wall time, that of all stages and of those up to the features, and how often each was computed.
    """
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "presel", "run", *overrides], cwd=folder, check=True, capture_output=True
    )
    seconds = time.perf_counter() - started
    manifests = [json.loads(file.read_text()) for file in folder.glob("outputs/store/*/*/manifest.json")]
    return {
        "what": " ".join(overrides),
        "seconds": seconds,
        "stages": sum(manifest["wall_seconds"] for manifest in manifests),
        "up_to_features": sum(
            manifest["wall_seconds"] for manifest in manifests if manifest["stage"] not in _AFTER_FEATURES
        ),
        "computed": dict(Counter(manifest["label"] for manifest in manifests)),
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=36000, help="images of the pool (%(default)s)")
    common = ("until=selection", f"pool.size={parser.parse_args().size}")
    rows = []
    for overrides in (common, ("-m", *GRID, *common)):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run(Path(folder), *overrides))
    single, sweep = rows
    ratios: Row = {
        "what": "sweep beside one run",
        # Its own, because the machine's speed drifts from run to run.
        "stages_of_stages_up_to_features": sweep["stages"] / sweep["up_to_features"],
        "wall_of_wall": sweep["seconds"] / single["seconds"],
    }
    for row in rows:
        print(row)
    print(table([ratios]))
    print(last_line(sweep=[*rows, ratios]))


if __name__ == "__main__":
    main()
