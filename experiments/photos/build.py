"""Builds `lvlm=photo_llava`: two published parts, and a projector pretrained on captions of photographs.

    python -m experiments.photos.build --photos ../shared/photos

Every phase is skipped where its result exists, so that the same command goes on after an interruption.
"""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.photos.parts import save_language_model, save_tower
from experiments.photos.projector import Captioner, Settings, encode_pictures, pretrain
from experiments.pretraining.common import log_to
from presel.models.assembly import assemble
from presel.storage.files import read_json

log = logging.getLogger("photos")


def build(photos: Path, work: Path, out: Path, settings: Settings) -> None:
    """Builds the model folder `out`, and beside it the tower alone, for features."""
    language, tower = work / "language", work / "tower"
    features, projector, card = work / "features.npy", work / "mm_projector.bin", work / "card.json"
    captions = read_json(photos / "captions.json")
    _phase(language, lambda: save_language_model(language))
    _phase(tower, lambda: save_tower(tower))
    pictures = [photos / "images" / record["image"] for record in captions]
    _phase(features, lambda: encode_pictures(tower, pictures, features))
    if not projector.exists():
        captioner = Captioner(language, np.load(features), [record["captions"] for record in captions])
        trained = pretrain(captioner, len(captions), settings, work, projector)
        card.write_text(json.dumps(trained, indent=2))
    _phase(out, lambda: assemble(str(language), str(tower), projector, out, "float32"))


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
