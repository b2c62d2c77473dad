"""Two actors of Ray beside `executor=local` with as many worker processes, in one run.

    python experiments/benchmarks/ray_actors.py [--images 1024] [--processes 2] [--stages pool features]

JPEGs of 640 × 480 are checked as a pool, and encoded by a DINOv2 with random weights, of the small model's
shape: by processes of this machine, whose model has all processors, and by as many actors, each with one.
Both ways take turns, twice each; the better time counts. OMP_NUM_THREADS must not be set. The start of Ray
is timed by itself; that of actors and of worker processes, a few seconds a stage, is part of their time.
Prints a table and, last, one line of JSON.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

_DIFFERENT = 64


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--stages", nargs="+", choices=("pool", "features"), default=["pool", "features"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.images, options.processes, options.stages)


def measure(folder: Path, images: int, processes: int, stages: Sequence[str]) -> None:
    """Computes the stages both ways, in turn."""
    # Imported here, since the worker processes of the image check import this module.
    from common import Rows, last_line, table, timed
    from features import WIDTHS, random_dinov2

    from presel.data.image_folder import ImageFolder
    from presel.distributed.executors import LocalExecutor, RayExecutor
    from presel.distributed.ray_session import connect
    from presel.distributed.runtime import Runtime
    from presel.models.encoder import Encoder
    from presel.stages.features import FeaturesStage
    from presel.stages.pool import PoolStage
    from presel.storage.store import Store

    draw(folder / "images", images)
    encoder = Encoder(path=str(random_dinov2(folder / "model", WIDTHS["small"])), batch_size=16)
    pool = PoolStage(source=ImageFolder(images=folder / "images", task="all"), workers=processes)
    features = FeaturesStage(pool=pool, encoder=encoder, runtime=Runtime(workers=processes))
    executors = {
        "local": LocalExecutor(workers=processes),
        "ray": RayExecutor(workers=0, actors=processes),
    }
    _, start = timed(lambda: connect(None))
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for turn in range(2):
        for name, executor in executors.items():
            store = Store(folder / f"{name}-{turn}", executor=executor)
            for stage in (one for one in (pool, features) if one.name in stages):
                seconds[stage.name, name].append(timed(lambda: store.ensure(stage))[1])  # noqa: B023
    executors["ray"].close()
    rows, ratios = Rows(), {}
    for what in stages:
        best = {name: min(seconds[what, name]) for name in executors}
        ratios[what] = best["local"] / best["ray"]
        rows.add(what, **{f"{name}_seconds": one for name, one in best.items()}, speed=ratios[what])
    print(table(rows))
    print(last_line(images=images, processes=processes, start_of_ray_seconds=start, speed_of_local=ratios))


def draw(folder: Path, images: int) -> None:
    """Writes JPEGs, of which a few have a picture of their own, and all have bytes of their own."""
    from samples import photographs

    pictures = [file.read_bytes() for file in photographs(folder, min(_DIFFERENT, images))]
    for number in range(images):
        # What follows the end of a JPEG is ignored.
        picture = pictures[number % len(pictures)] + number.to_bytes(4, "big")
        (folder / f"{number:05}.jpg").write_bytes(picture)


if __name__ == "__main__":
    main()
