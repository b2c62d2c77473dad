"""Export for LLaMA-Factory: messages with images, and the entry that describes their file."""

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
# LLaMA-Factory looks for a file behind each of these, wherever it stands.
_OTHER_MEDIA = ("<video>", "<audio>")


def write_llama_factory(folder: Path, records: Sequence[Record], images: Path) -> None:
    """Writes `train.json` and `dataset_info.json`, whose entry is named `selection`.

    The image token stands first in its question, where LLaVA's own code moves it; LLaMA-Factory leaves it
    where it is.

    Args:
        folder: Where they go, and LLaMA-Factory's `dataset_dir`.
        records: What to write.
        images: Image folder, absolute or relative to `folder`, as LLaMA-Factory takes both.

    Raises:
        PreselError: If a record's text would be taken for a video or a sound.
    """
    write_json(folder / _FILE, [_sample(record, images) for record in records])
    write_json(folder / "dataset_info.json", {"selection": _ENTRY})


def _sample(record: Record, images: Path) -> dict[str, Any]:
    for token in _OTHER_MEDIA:
        if any(token in turn["value"] for turn in record.conversations):
            raise PreselError(
                f"record '{record.id}': its text has {token}, for which LLaMA-Factory wants a file; reword "
                "it and run again, or take another --format"
            )
    messages = [
        {"role": _ROLES[turn["from"]], "content": image_first(turn["value"])} for turn in record.conversations
    ]
    return {"id": record.id, "messages": messages, "images": [str(images / record.image)]}
