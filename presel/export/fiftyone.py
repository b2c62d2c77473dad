"""The whole pool as a dataset of FiftyOne."""

from pathlib import Path
from typing import Any

from presel.data.llava import Record
from presel.data.prompts import IMAGE_TOKEN
from presel.export.pool_table import pool_table
from presel.runs import RunRecord
from presel.stages.pool import image_list
from presel.storage.files import write_json

_KINDS = {"b": "BooleanField", "i": "IntField", "u": "IntField", "f": "FloatField"}
_TEXT, _TEXTS = "StringField", "ListField(fiftyone.core.fields.StringField)"


def write_fiftyone(folder: Path, run: RunRecord, images: Path) -> None:
    """Writes `metadata.json` and `samples.json`, which FiftyOne imports as its type `FiftyOneDataset`.

    A record is a sample: its first image, the columns of the `pool_table` with the id as `pool_id`, all its
    images, and the tags `chosen` and `reference`. If its instruction is bought, `question` and `answer` are
    the first ones, and `conversation` has all in turn.

    Args:
        folder: The folder to write to.
        run: The run.
        images: The image folder, absolute or relative to `folder`.
    """
    table = pool_table(run)
    names = table.pop("id"), table.pop("image")
    kinds = {name: _KINDS.get(table[name].dtype.kind, _TEXT) for name in table}
    shown = image_list(run.result("images")).groupby("record")["image"].agg(list)
    records = run.records() if "instructions" in run.stages else []
    instructions = {record.id: _instruction(record) for record in records}
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    samples = [
        {
            "filepath": str(images / image),
            "tags": [tag for tag in ("chosen", "reference") if row[tag]],
            "pool_id": name,
            "images": [str(images / one) for one in shown[position]],
            **row,
            **instructions.get(name, {}),
        }
        for position, (name, image, row) in enumerate(zip(*names, rows, strict=True))
    ]
    kinds |= {"filepath": _TEXT, "tags": _TEXTS, "pool_id": _TEXT, "images": _TEXTS}
    kinds |= {"question": _TEXT, "answer": _TEXT, "conversation": _TEXTS}
    fields = {name: f"fiftyone.core.fields.{kind}" for name, kind in kinds.items()}
    write_json(folder / "metadata.json", {"media_type": "image", "sample_fields": fields})
    write_json(folder / "samples.json", {"samples": samples})


def _instruction(record: Record) -> dict[str, Any]:
    texts = [turn["value"].replace(IMAGE_TOKEN, "").strip() for turn in record.conversations]
    return {"question": texts[0], "answer": texts[1], "conversation": texts}
