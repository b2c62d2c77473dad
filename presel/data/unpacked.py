"""Stage `unpacked`: the images of an archive as files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from presel.console import progress
from presel.data.archive import Archive, PackedImage
from presel.errors import PreselError
from presel.storage.files import read_table, sync_tree, write_table
from presel.storage.stage import Stage
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class UnpackedStage(Stage[Path]):
    """Images with their bytes unchanged, in the folder `images`, and `listing.parquet` (id, image, task).

    Files are named by their place in the archive: no name that the archive holds becomes a path.

    Attributes:
        archive: Where the images are packed.
    """

    name: ClassVar[str] = "unpacked"
    version: ClassVar[int] = 2

    archive: Archive

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Unpacks part after part, but for those that an interrupted run finished.

        Raises:
            PreselError: If there is no image, or one name is given to two.
        """
        parts = self.archive.parts()
        tables = []
        with progress("unpacking images", len(parts)) as advance:
            for number, part in enumerate(parts):
                file = folder / "parts" / f"part-{number:05}.parquet"
                if not file.exists():
                    write_table(file, _unpack(part, folder / "images", f"{number:05}"))
                tables.append(read_table(file))
                advance(1)
        table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"id": []})
        if not len(table):
            raise PreselError("the pool's files hold no image; give some with at least one")
        twice = table["id"][table["id"].duplicated()]
        if len(twice):
            raise PreselError(
                f"two images of the pool are named '{twice.iloc[0]}'; give each a name of its own"
            )
        write_table(folder / "listing.parquet", table)
        return {"images": len(table)}

    def load(self, folder: Path) -> Path:
        """The folder itself."""
        return folder


def _unpack(part: Iterable[PackedImage], images: Path, name: str) -> pd.DataFrame:
    (images / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for place, packed in enumerate(part):
        image = f"{name}/{place:06}{packed.suffix}"
        (images / image).write_bytes(packed.data)
        rows.append((packed.id, image, packed.task))
    # The table promises them.
    sync_tree(images / name)
    return pd.DataFrame(rows, columns=["id", "image", "task"])
