"""Export for LLaVA's own training code, and for this program as a pool."""

from collections.abc import Sequence
from pathlib import Path

from presel.data.llava import Record, write_records


def write_llava(folder: Path, records: Sequence[Record], images: Path) -> None:
    """Writes `train.json`.

    Args:
        folder: Folder to write.
        records: The records to write.
        images: Not written; LLaVA takes the image folder as an argument.
    """
    write_records(folder / "train.json", records)
