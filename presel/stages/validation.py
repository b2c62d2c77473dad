"""Stage `samples`: labeled held-out samples, for strategies that read some before they select."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from presel.data.sources import annotated
from presel.stages.instructions import SamplesStage
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ValidationStage(SamplesStage):
    """The usable validation samples with their answers.

    They are not part of the pool, so no ledger records them.
    """

    name: ClassVar[str] = "samples"

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Copies the records of usable images."""
        usable = set(store.load(self.pool)["id"])
        records = [record for record in annotated(self.pool.files(store)).records() if record.id in usable]
        self.write(folder, records)
        return {"samples": len(records)}
