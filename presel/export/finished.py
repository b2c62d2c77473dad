"""A finished run, read back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from presel.data.llava import Record, TaskRule, read_records
from presel.errors import PreselError
from presel.storage.files import read_json, read_table
from presel.storage.integrity import MANIFEST, check_result, read_manifest

_INSTRUCTIONS = "instructions (selection)"


# No path holds a zero byte.
_Folder = Annotated[str, Field(pattern=r"^[^\x00]+$")]


class _Report(BaseModel):
    """What is read of a `run.json`."""

    model_config = ConfigDict(strict=True)

    strategy: str
    overrides: list[str]
    images: _Folder
    stages: dict[str, _Folder]


def check_ids(file: Path, table: pd.DataFrame) -> None:
    """Makes sure that a table's ids, by which it is joined to another, are texts that differ.

    Raises:
        PreselError: If not; it names the file.
    """
    ids = table["id"]
    if ids.duplicated().any() or not ids.map(lambda one: isinstance(one, str)).all():
        raise PreselError(
            f"{file}: its column 'id' does not hold one name for each image; use results of your own runs"
        )


@dataclass(frozen=True)
class FinishedRun:
    """What a run left, by its `run.json`.

    Attributes:
        folder: Where that file lies.
        strategy: Who chose.
        overrides: Settings given on the command line.
        images: Folder that image paths are relative to.
        stages: Folder of each stage by its label.
    """

    folder: Path
    strategy: str
    overrides: list[str]
    images: Path
    stages: dict[str, Path]

    @classmethod
    def read(cls, folder: Path) -> "FinishedRun":
        """Reads a run's `run.json`.

        Raises:
            PreselError: If there is none, or it is damaged.
        """
        file = folder / "run.json"
        if not file.is_file():
            raise PreselError(
                f"{file}: there is no such file; name the folder of one run that ended well "
                "(outputs/runs/DATE/TIME, in a sweep one of the numbered folders inside it)"
            )
        try:
            report = _Report.model_validate(read_json(file))
        except (ValueError, RecursionError):
            raise PreselError(f"{file} is damaged, or of another version; run the same again") from None
        return cls(
            folder=folder,
            strategy=report.strategy,
            overrides=report.overrides,
            images=Path(report.images),
            stages={label: Path(stage) for label, stage in report.stages.items()},
        )

    @property
    def selection(self) -> Path:
        """Folder of the selection.

        Raises:
            PreselError: If its result is gone or damaged.
        """
        return self._stage(f"selection ({self.strategy})")

    @property
    def instructions(self) -> Path:
        """Folder of the training file.

        Raises:
            PreselError: If the run ended before there was one, or it is gone or damaged.
        """
        if _INSTRUCTIONS not in self.stages:
            raise PreselError(
                f"{self.folder}: this run ended with its selection, without instructions; run the same again "
                "with until=instructions, or take --format manifest, which needs none"
            )
        return self._stage(_INSTRUCTIONS)

    @property
    def pool_size(self) -> int:
        """Usable images in the pool."""
        return int(read_manifest(self._stage("pool"))["measured"]["images"])

    def chosen(self) -> pd.DataFrame:
        """One row a chosen image, in the pool's order: id, image, task, and what the strategy says of it.

        Raises:
            PreselError: If the pool or the selection is gone or damaged.
        """
        pool_file, file = self._stage("pool") / "pool.parquet", self.selection / "selection.parquet"
        pool = read_table(pool_file, "id", "image")[["id", "image"]]
        table = read_table(file, "id", "task", "selected")
        check_ids(pool_file, pool)
        check_ids(file, table)
        chosen = table[table["selected"].eq(True)].drop(columns=["selected", "image"], errors="ignore")
        return pool.merge(chosen, on="id")

    def records(self) -> list[Record]:
        """The chosen images' instructions, in the pool's order; an image that got none has no record.

        Raises:
            PreselError: If the run ended before there were any, or they are gone or damaged.
        """
        return read_records(self.instructions / "train.json", TaskRule())

    def _stage(self, label: str) -> Path:
        folder = self.stages.get(label)
        if folder is None:
            raise PreselError(f"{self.folder / 'run.json'}: it names no stage '{label}'; run the same again")
        if not (folder / MANIFEST).exists():
            raise PreselError(
                f"{self.folder / 'run.json'}: the result of stage '{label}' is gone from {folder}; run the "
                "same again with until=instructions, and export that run"
            )
        check_result(folder)
        return folder
