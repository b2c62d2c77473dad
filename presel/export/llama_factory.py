"""Export for LLaMA-Factory: messages with images, and the dataset description."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from presel.data.llava import Record
from presel.data.prompts import image_first
from presel.errors import PreselError
from presel.storage.files import write_json

_FILE = "train.json"
_ROLES = {"human": "user", "gpt": "assistant"}
_ENTRY = {
    "file_name": _FILE,
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
    },
}
# LLaMA-Factory expects a file for each occurrence of these in a text.
_OTHER_MEDIA = ("<video>", "<audio>")


def write_llama_factory(folder: Path, records: Sequence[Record], images: Path) -> None:
    """Writes `train.json` and `dataset_info.json` with the dataset `selection`.

    The image token is moved to the start of its question, as LLaVA's own code does; LLaMA-Factory does not
    move it.

    Args:
        folder: Folder to write, LLaMA-Factory's `dataset_dir`.
        records: The records to write.
        images: Image folder, absolute or relative to `folder`; LLaMA-Factory accepts both.

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
