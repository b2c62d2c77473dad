"""Stage `instructions`: buys instructions for chosen images, and only for those."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from presel.data.llava import Record, TaskRule, read_records, write_records
from presel.instructions.ledger import request
from presel.instructions.provider import InstructionProvider, InstructionRequest
from presel.stages.pool import Pool
from presel.storage.stage import Stage
from presel.storage.store import Store


@dataclass(frozen=True)
class InstructionsStage(Stage[list[Record]]):
    """A LLaVA-format training file, `train.json`, beside the ledger of what was asked.

    Leaves `unanswered.parquet` too: id and why, of the images for which no instruction could be had.

    Attributes:
        pool: The pool the images are from.
        chosen: A stage whose result is a table with the column `id`: the images to instruct.
        provider: Where instructions come from.
        what_for: Who asks, for the ledger: `reference`, `selection` or `whole pool`.
    """

    name: ClassVar[str] = "instructions"

    pool: Pool
    chosen: Stage[pd.DataFrame]
    provider: InstructionProvider
    what_for: str = field(compare=False)

    @property
    def label(self) -> str:
        """Says which of the two purchases this is."""
        return f"{self.name} ({self.what_for})"

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Requests the instructions of the chosen images."""
        pool = store.load(self.pool).assign(content=self.pool.contents(store)).set_index("id")
        chosen = pool.loc[store.load(self.chosen)["id"], ["image", "task", "content"]]
        wanted = [InstructionRequest(*row) for row in chosen.itertuples(name=None)]
        files = self.pool.files(store)
        records = request(wanted, self.provider, files, folder, self.what_for)
        write_records(folder / "train.json", records)
        return {"requested": len(wanted), "unanswered": len(wanted) - len(records)}

    def load(self, folder: Path) -> list[Record]:
        """The records, with their conversations."""
        return read_records(folder / "train.json", TaskRule())
