"""The formats of training data: of LLaVA, LLaMA-Factory and the Hugging Face library `datasets`.

Every writer takes the folder to write to, the records, and their image folder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from presel.console import console
from presel.data.llava import Record, write_records
from presel.data.prompts import image_first
from presel.errors import PreselError
from presel.storage.files import write_json

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


def write_llava(folder: Path, records: Sequence[Record], images: Path) -> None:
    """Writes `train.json`; LLaVA takes the image folder as an argument."""
    write_records(folder / _FILE, records)


def write_llama_factory(folder: Path, records: Sequence[Record], images: Path) -> None:
    """Writes `train.json` and `dataset_info.json` with the dataset `selection`.

    The image token is moved to the start of its question, as LLaVA's own code does; LLaMA-Factory does not
    move it. The image folder may be absolute or relative to `folder`.

    Raises:
        PreselError: If a record's text holds the token of a video or a sound.
    """
    write_json(folder / _FILE, [_sample(record, images) for record in records])
    write_json(folder / "dataset_info.json", {"selection": _ENTRY})


def _sample(record: Record, images: Path) -> dict[str, Any]:
    for token in _OTHER_MEDIA:
        if any(token in turn["value"] for turn in record.conversations):
            raise PreselError(
                f"record '{record.id}': its text has {token}, for which LLaMA-Factory expects a file; "
                "reword it and run again, or use another --format"
            )
    messages = [
        {"role": _ROLES[turn["from"]], "content": image_first(turn["value"])} for turn in record.conversations
    ]
    return {"id": record.id, "messages": messages, "images": [str(images / record.image)]}


def write_hf(folder: Path, records: Sequence[Record], images: Path) -> None:
    """Saves a `Dataset` with columns id, image, task and conversations; image files are embedded.

    Raises:
        PreselError: If `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise PreselError(
            f"--format hf needs the package datasets ({error}); install it: pip install 'presel[sources]'"
        ) from error
    if not console.is_terminal:
        datasets.disable_progress_bars()
    text = datasets.Value("string")
    features = {
        "id": text,
        "image": datasets.Image(),
        "task": text,
        "conversations": [{"from": text, "value": text}],
    }
    columns = {
        "id": [record.id for record in records],
        "image": [str(images / record.image) for record in records],
        "task": [record.task for record in records],
        "conversations": [list(record.conversations) for record in records],
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(folder)


WRITERS: dict[str, Callable[[Path, Sequence[Record], Path], None]] = {
    "llava": write_llava,
    "llama_factory": write_llama_factory,
    "hf": write_hf,
}
