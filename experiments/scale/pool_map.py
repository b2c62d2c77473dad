"""The map of a large drawn pool: time and memory of the stage that lays its images out.

    python -m experiments.scale.pool_map --folder FOLDER [--images 600000] [--tasks 10]

Features have 768 dimensions and take 1.5 GB a million images in FOLDER. Prints one line of JSON.
"""

import argparse
import json
import os
from pathlib import Path

from experiments.scale.drawn import DrawnFeatures, DrawnPool
from experiments.scale.measure import Usage
from presel.selection.threads import cpu_count
from presel.stages.map import MapStage
from presel.storage.store import Store


def main() -> None:
    """Reads the command line, draws the features, measures the map."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=600_000)
    parser.add_argument("--tasks", type=int, default=10)
    options = parser.parse_args()
    store = Store(options.folder)
    stage = MapStage(features=DrawnFeatures(pool=DrawnPool(n_images=options.images, n_tasks=options.tasks)))
    store.ensure(stage.features)
    usage, before = Usage(options.folder), os.times()
    store.ensure(stage)
    after = os.times()
    print(
        json.dumps(
            {
                "images": options.images,
                "processors": cpu_count(),
                "seconds": round(after.elapsed - before.elapsed, 1),
                "cpu_seconds": round(after.user + after.system - before.user - before.system, 1),
                **usage.peak(),
            }
        )
    )


if __name__ == "__main__":
    main()
