"""How long `presel doctor` takes on a pool, beside a bare loop that decodes its images.

Command: `python experiments/benchmarks/doctor.py`. Draws 100,000 JPEGs of 640 × 480 pixels, 5 GB, one in a
hundred a near-duplicate of the one before; decodes them in bare worker processes, then runs the doctor at the
command line with as many, which is to find the near-duplicates. Ends in one line of JSON. `--size 2000` and
`--width 64 --height 48` make it smaller; `--folder` keeps the pictures, and draws only what is missing there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from common import last_line, table, timed
from PIL import Image, ImageEnhance

_REPEATED = 100
_TASKS = 10


def draw(folder: Path, size: tuple[int, int], number: int) -> None:
    """Draws one picture, unless it is there: smoothed noise, under finer noise."""
    path = folder / f"{number:06}.jpg"
    if path.exists():
        return
    repeats = number % _REPEATED == _REPEATED - 1
    random = np.random.default_rng(number - repeats)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(random.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)).resize(
        size
    )
    picture = Image.blend(coarse, fine, 0.15)
    if repeats:
        picture = ImageEnhance.Brightness(picture).enhance(1.05)
    picture.save(path, quality=85)


def decode(path: Path) -> int:
    """The least that can be done to see that an image is whole."""
    with Image.open(path) as image:
        image.load()
        return image.width


def doctor(folder: Path, workers: int) -> dict[str, object]:
    """Runs the command line."""
    report = folder / "report.json"
    command = [
        sys.executable,
        "-m",
        "presel",
        "doctor",
        "pool=llava_json",
        f"pool.annotations={folder}/pool.json",
    ]
    command += [
        f"pool.images={folder}/images",
        f"executor.workers={workers}",
        "--json",
        str(report),
    ]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    found: dict[str, object] = json.loads(report.read_text())
    return found


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    numbers = range(options.size)
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(options.workers) as processes:
        folder = (options.folder or Path(name)).absolute()
        (folder / "images").mkdir(parents=True, exist_ok=True)
        size = (options.width, options.height)
        list(processes.map(partial(draw, folder / "images", size), numbers, chunksize=64))
        files = [folder / "images" / f"{number:06}.jpg" for number in numbers]
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Noise."}]
        records = [
            {"id": file.stem, "image": file.name, "task": f"task {row % _TASKS}", "conversations": turns}
            for row, file in enumerate(files)
        ]
        (folder / "pool.json").write_text(json.dumps(records))
        _, bare = timed(lambda: list(processes.map(decode, files, chunksize=64)))
        report, seconds = timed(lambda: doctor(folder, options.workers))
        gigabytes = sum(file.stat().st_size for file in files) / 1e9
    row = {
        "images": options.size,
        "gb": gigabytes,
        "bare_seconds": bare,
        "doctor_seconds": seconds,
        "ratio": seconds / bare,
        "images_per_second": options.size / seconds,
        "near_duplicates": report["near_duplicates"]["groups"],
        "planted": options.size // _REPEATED,
    }
    print(table([row]))
    print(last_line(doctor=row))


if __name__ == "__main__":
    main()
