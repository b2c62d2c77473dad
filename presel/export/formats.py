"""The formats of training data that other programs read, see `WRITERS`.

Every writer takes the folder to write to, the records, their image folder (absolute, or relative to that
folder), and the path that the folder will have once it is complete.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq

from presel.console import console
from presel.data.llava import Record, write_records
from presel.data.prompts import IMAGE_TOKEN, Turn, image_first
from presel.errors import PreselError
from presel.storage.files import write_json

_log = logging.getLogger(__name__)

_FILE = "train.json"
_ROLES = {"human": "user", "gpt": "assistant"}
# The description of the dataset that LLaMA-Factory reads.
_ENTRY = {
    "file_name": _FILE,
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}
# LLaMA-Factory expects a file for each occurrence of these in a text.
_OTHER_MEDIA = ("<video>", "<audio>")
# Rows of a parquet file that are held in memory at a time, with their images.
_ROWS_AT_A_TIME = 100


def write_llava(folder: Path, records: Sequence[Record], images: Path, out: Path) -> None:
    """Writes `train.json`; LLaVA takes the image folder as an argument, and one image per record."""
    if several := sum(len(record.images) > 1 for record in records):
        _log.warning(
            f"{several:,} records have several images, at which LLaVA's own training code fails; "
            "LLaVA-NeXT's reads them"
        )
    write_records(folder / _FILE, records)


def write_llama_factory(folder: Path, records: Sequence[Record], images: Path, out: Path) -> None:
    """Writes `train.json` and `dataset_info.json` with the dataset `selection`.

    A question's only image token is moved to its start, as LLaVA's own code does; LLaMA-Factory does not move
    it. Image paths are relative to `out` if `images` is.

    Raises:
        PreselError: If a record's text holds the token of a video or a sound.
    """
    for record in records:
        _check_media(record)
    write_json(folder / _FILE, [_with_messages(record, images) for record in records])
    write_json(folder / "dataset_info.json", {"selection": _ENTRY})


def write_ms_swift(folder: Path, records: Sequence[Record], images: Path, out: Path) -> None:
    """Writes `train.json` in ms-swift's standard format.

    Its records are those of LLaMA-Factory, without the line break after an image, which ms-swift's templates
    add where a model has one. Image paths are absolute, because ms-swift takes others as relative to its
    working directory.
    """
    write_json(folder / _FILE, [_with_messages(record, out / images, _unbroken) for record in records])


def write_internvl(folder: Path, records: Sequence[Record], images: Path, out: Path) -> None:
    """Writes `train.jsonl` and `meta.json`, which InternVL's training takes as `--meta_path`.

    The image token of a record with one image is moved to its first question, where InternVL expects it and
    would add another. The paths in `meta.json` are absolute, because InternVL takes others as relative to its
    working directory.
    """
    file = "train.jsonl"
    write_records(
        folder / file,
        [replace(record, conversations=_in_first_question(record.conversations)) for record in records],
    )
    entry = {
        "root": f"{out / images}/",
        "annotation": str(out / file),
        "data_augment": False,
        "repeat_time": 1,
        "length": len(records),
    }
    write_json(folder / "meta.json", {"selection": entry})


def write_trl(folder: Path, records: Sequence[Record], images: Path, out: Path) -> None:
    """Writes `train.parquet` for TRL's `SFTTrainer`, with columns id, messages and images.

    The content of a message is a list of parts, with an image part for each image token. Column `images` has
    the images in the order of these parts; their files are embedded.

    Raises:
        PreselError: If `datasets` is not installed.
    """
    datasets = _datasets("trl")
    text = datasets.Value("string")
    features = {
        "id": text,
        "messages": [{"role": text, "content": [{"type": text, "text": text}]}],
        "images": [datasets.Image()],
    }
    samples = [_with_messages(record, images, content_parts) for record in records]
    columns = {name: [sample[name] for sample in samples] for name in features}
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features)).with_format("arrow")
    with pq.ParquetWriter(folder / "train.parquet", dataset.features.arrow_schema) as writer:
        for table in dataset.iter(batch_size=_ROWS_AT_A_TIME):
            writer.write_table(datasets.table.embed_table_storage(table))


def write_hf(folder: Path, records: Sequence[Record], images: Path, out: Path) -> None:
    """Saves a `Dataset` with columns id, image, task and conversations; image files are embedded.

    Unless every record has one image, the column is `images`, a list.

    Raises:
        PreselError: If `datasets` is not installed.
    """
    datasets = _datasets("hf")
    text = datasets.Value("string")
    paths = [[str(path) for path in record.paths(images)] for record in records]
    single = all(len(found) == 1 for found in paths)
    image = {"image": datasets.Image()} if single else {"images": [datasets.Image()]}
    features = {
        "id": text,
        **image,
        "task": text,
        "conversations": [{"from": text, "value": text}],
    }
    columns = {
        "id": [record.id for record in records],
        next(iter(image)): [found[0] for found in paths] if single else paths,
        "task": [record.task for record in records],
        "conversations": [list(record.conversations) for record in records],
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(folder)


def _datasets(form: str) -> ModuleType:
    """The library `datasets`, which is optional.

    Raises:
        PreselError: If it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise PreselError(
            f"--format {form} needs the package datasets ({error}): pip install '.[sources]' in the clone"
        ) from error
    if not console.is_terminal:
        datasets.disable_progress_bars()
    module: ModuleType = datasets
    return module


def content_parts(text: str) -> list[dict[str, str]]:
    """Splits a text at its image tokens into the parts of a message's content.

    White space between the images at the start and the first words is dropped, since a model's chat template
    separates them in its own way.

    Returns:
        Parts of type `image` or `text`, in the order of the text.
    """
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_TOKEN)):
        if number:
            parts.append({"type": "image"})
        if not any(part["type"] == "text" for part in parts):
            piece = piece.lstrip()
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _unbroken(text: str) -> str:
    """A text without white space between the images at its start and the first words."""
    return "".join(part.get("text", IMAGE_TOKEN) for part in content_parts(text))


def _with_messages(record: Record, images: Path, content: Callable[[str], Any] = str) -> dict[str, Any]:
    messages = [
        {"role": _ROLES[turn["from"]], "content": content(image_first(turn["value"]))}
        for turn in record.conversations
    ]
    return {"id": record.id, "messages": messages, "images": [str(path) for path in record.paths(images)]}


def _check_media(record: Record) -> None:
    for token in _OTHER_MEDIA:
        if any(token in turn["value"] for turn in record.conversations):
            raise PreselError(
                f"record '{record.id}': its text has {token}, for which LLaMA-Factory expects a file; "
                "reword it and run again, or use another --format"
            )


def _in_first_question(conversations: Sequence[Turn]) -> tuple[Turn, ...]:
    """Turns with the image token of a record that has one at the start of the first question."""
    turns: list[Turn] = [{**turn, "value": image_first(turn["value"])} for turn in conversations]
    if sum(turn["value"].count(IMAGE_TOKEN) for turn in turns) == 1 and IMAGE_TOKEN not in turns[0]["value"]:
        turns = [{**turn, "value": turn["value"].replace(IMAGE_TOKEN, "").strip()} for turn in turns]
        turns[0]["value"] = f"{IMAGE_TOKEN}\n{turns[0]['value']}"
    return tuple(turns)


WRITERS: dict[str, Callable[[Path, Sequence[Record], Path, Path], None]] = {
    "llava": write_llava,
    "llama_factory": write_llama_factory,
    "ms_swift": write_ms_swift,
    "internvl": write_internvl,
    "trl": write_trl,
    "hf": write_hf,
}
# Formats that hold the images themselves.
IMAGES_IN_FILE = ("trl", "hf")
