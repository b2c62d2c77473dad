"""Made-up photographs and conversations about them.

The benchmarks are run by path, so this module is their neighbor and not part of a package.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from presel.data.llava import Record
from presel.data.prompts import IMAGE_TOKEN, Turn


def photographs(folder: Path, count: int) -> list[Path]:
    """Writes JPEGs of 640 × 480: a smooth picture with grain, which compresses as photographs do."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
        picture = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        files.append(folder / f"{number:05}.jpg")
        Image.fromarray(picture).save(files[-1], quality=90)
    return files


def conversations(files: list[Path], longest: int = 60) -> list[Record]:
    """One record a file: one to three turns, questions and answers of one to `longest` words."""
    rng = np.random.default_rng(1)
    words = ["the", "red", "circle", "lies", "left", "of", "seven", "what", "color", "is"]
    records = []
    for number, file in enumerate(files):
        turns: list[Turn] = []
        for turn in range(int(rng.integers(1, 4))):
            question, answer = (
                " ".join(rng.choice(words, size=int(rng.integers(1, longest + 1)))) for _ in range(2)
            )
            prefix = "" if turn else f"{IMAGE_TOKEN}\n"
            turns += [{"from": "human", "value": prefix + question}, {"from": "gpt", "value": answer}]
        records.append(Record(f"{number:05}", (file.name,), "all", tuple(turns)))
    return records
