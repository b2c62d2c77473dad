"""Stage `instructions`: buys instructions for chosen images, and only for those."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from presel.data.llava import Record, TaskRule, read_records, write_records
from presel.ledger import LEDGER, InstructionProvider, request
from presel.stages.pool import PoolStage
from presel.store import Stage, Store


@dataclass(frozen=True)
class InstructionsStage(Stage[list[Record]]):
    """A LLaVA-format training file, `train.json`, beside the ledger of what was asked.

    Attributes:
        pool: The pool the images are from.
        chosen: A stage whose result is a table with the column `id`: the images to instruct.
        provider: Where instructions come from.
        what_for: Who asks, for the ledger: `reference`, `selection` or `whole pool`.
    """

    name: ClassVar[str] = "instructions"

    pool: PoolStage
    chosen: Stage[pd.DataFrame]
    provider: InstructionProvider
    what_for: str = field(compare=False)

    @property
    def label(self) -> str:
        """Says which of the two purchases this is."""
        return f"{self.name} ({self.what_for})"

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Requests the instructions of the chosen images."""
        ids = store.load(self.chosen)["id"].tolist()
        files = self.pool.source.files(store)
        records = request(ids, self.provider, files, folder / LEDGER, self.what_for)
        write_records(folder / "train.json", records)
        return {"requested": len(ids)}

    def load(self, folder: Path) -> list[Record]:
        """The records, with their conversations."""
        return read_records(folder / "train.json", TaskRule())
