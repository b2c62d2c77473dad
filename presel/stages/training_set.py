"""Stages `text_only` and `training_set`: what a model is tuned on beside or in place of one purchase."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from presel.data.sources import annotated
from presel.instructions.ledger import read_text_only
from presel.stages.instructions import SamplesStage
from presel.stages.pool import PoolStage
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class TextOnlyStage(SamplesStage):
    """The records without an image that a pool's source keeps: free, and in no budget.

    Leaves `ledger.parquet` too, which counts as no request.
    """

    name: ClassVar[str] = "text_only"
    # 2: models are tuned on these records in steps of their own.
    version: ClassVar[int] = 2

    pool: PoolStage

    @property
    def label(self) -> str:
        """The stage's name, since a run has one such set."""
        return self.name

    def compute(self, store: Store, folder: Path) -> dict[str, int]:
        """Copies the records."""
        files = annotated(self.pool.files(store))
        records = read_text_only(self.pool.text_only_ids(store), files, folder, self.purpose)
        self.write(folder, records)
        return {"samples": len(records)}


@dataclass(frozen=True, kw_only=True)
class TrainingSetStage(SamplesStage):
    """Several sets of samples joined, without buying anything.

    Attributes:
        parts: The sets.
    """

    name: ClassVar[str] = "training_set"

    parts: tuple[SamplesStage, ...]

    def compute(self, store: Store, folder: Path) -> dict[str, int]:
        """Joins the training files."""
        records = [record for part in self.parts for record in store.load(part)]
        self.write(folder, records)
        return {"samples": len(records)}
