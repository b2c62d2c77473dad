"""Small pictures of two kinds, dark and light, that an encoder tells apart at a glance."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(file: Path, number: int = 0, light: bool = False) -> Path:
    """Draws one; the number decides the noise. The folder is made, the name's suffix tells the format."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 40, (24, 24, 3), dtype=np.uint8) + np.uint8(200 if light else 10)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def two_kinds(folder: Path, count: int = 40) -> list[Path]:
    """Draws dark pictures into `cats`, light ones into `dogs`, as PNG files, half of each."""
    return [
        picture(folder / ("dogs" if number % 2 else "cats") / f"{number:03}.png", number, bool(number % 2))
        for number in range(count)
    ]
