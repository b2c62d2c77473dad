"""Export for LLaVA's own training code, and for this program as a pool."""

from collections.abc import Sequence
from pathlib import Path

from presel.data.llava import Record, write_records


def write_llava(folder: Path, records: Sequence[Record], images: Path) -> None:
    """Writes `train.json`.

    Args:
        folder: Where it goes.
        records: What to write.
        images: Not written down: LLaVA is told the image folder beside the file.
    """
    write_records(folder / "train.json", records)
