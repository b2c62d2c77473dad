"""Feature extraction from files beside the bare model on ready tensors, in one run.

    python experiments/benchmarks/features.py [--encoder base|small] [--images 96] [--workers 2]

JPEGs of 640 × 480, 64 different ones at most, are decoded and resized in worker processes ahead of a DINOv2
with random weights, of the base model's shape or the small one's; the bound is the same model on tensors that
lie ready. Prints a table and, last, one line of JSON.
"""

import argparse
import tempfile
from functools import cache
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from common import Rows, last_line, table, timed
from samples import photographs
from transformers import AutoImageProcessor, AutoModel, BitImageProcessorPil, Dinov2Config, Dinov2Model

from presel.data.images import open_image
from presel.models.encoder import Encoder
from presel.models.hardware import device_for
from presel.storage.shards import chunks

WIDTHS = {"small": 384, "base": 768}
_DIFFERENT = 64


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", choices=WIDTHS, default="base")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="file to which each row is appended at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Encodes the same images from files and from tensors, in turn, twice each; the better time counts."""
    model_folder = random_dinov2(folder / "model", WIDTHS[options.encoder])
    different = photographs(folder / "images", min(_DIFFERENT, options.images))
    files = list(islice(cycle(different), options.images))
    encoder = Encoder(path=str(model_folder), batch_size=options.batch_size)
    batches = list(chunks(files, options.batch_size))
    device = device_for("auto")
    processor = AutoImageProcessor.from_pretrained(model_folder, backend="pil")

    @cache
    def prepared(batch: tuple[Path, ...]) -> torch.Tensor:
        images = [open_image(file) for file in batch]
        return processor(images=images, return_tensors="pt")["pixel_values"].to(device)

    ready = [prepared(tuple(batch)) for batch in batches]
    model = AutoModel.from_pretrained(model_folder).to(device).eval()

    @torch.inference_mode()
    def bare() -> list[np.ndarray]:
        return [model(pixels).last_hidden_state[:, 0].half().cpu().numpy() for pixels in ready]

    bare()
    bare_seconds, seconds = [], []
    for _ in range(2):
        expected, taken = timed(bare)
        bare_seconds.append(taken)
        found, taken = timed(lambda: list(encoder.encode(batches, options.workers)))
        seconds.append(taken)
    difference = float(
        np.abs(np.concatenate(found).astype(np.float32) - np.concatenate(expected).astype(np.float32)).max()
    )
    ratio = min(bare_seconds) / min(seconds)
    rows = Rows(options.rows)
    rows.add("bare model, ready tensors", images_per_second=options.images / min(bare_seconds))
    rows.add("encode, from files", images_per_second=options.images / min(seconds), of_the_bound=ratio)
    print(table(rows))
    print(
        last_line(
            encoder=options.encoder,
            images=options.images,
            workers=options.workers,
            ratio=ratio,
            bound=1.0,
            fraction_of_bound=ratio,
            largest_difference=difference,
        )
    )


def random_dinov2(folder: Path, width: int) -> Path:
    """Saves a DINOv2 with random weights, and its processor."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=width, num_attention_heads=width // 64, image_size=518, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    ).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
