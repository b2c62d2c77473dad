"""Stage `instructions`: buys instructions for the chosen images, and only for those."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from presel.data.llava import Record, read_training_file, write_records
from presel.errors import PreselError
from presel.instructions.ledger import UNANSWERED, request, requests_behind, shortage
from presel.instructions.provider import InstructionProvider, InstructionRequest, RequestedFile
from presel.stages.pool import Pool
from presel.storage.files import read_table
from presel.storage.integrity import remedy
from presel.storage.stage import Stage
from presel.storage.store import Store

if TYPE_CHECKING:
    from presel.models.conversations import Example


@dataclass(frozen=True, kw_only=True)
class SamplesStage(Stage[list[Record]]):
    """Base of the stages whose result is images with their instructions, `train.json` in LLaVA format.

    Attributes:
        pool: The pool that the images are from.
        purpose: What the samples are for, for labels.
    """

    pool: Pool
    purpose: str = field(compare=False)

    @property
    def label(self) -> str:
        """Says what the samples are for."""
        return f"{self.name} ({self.purpose})"

    def write(self, folder: Path, records: list[Record]) -> None:
        """Writes the records into the stage's folder."""
        write_records(folder / "train.json", records)

    def load(self, folder: Path) -> list[Record]:
        """The records, with their conversations."""
        return read_training_file(folder / "train.json")

    def ids(self, store: Store) -> pd.Series:
        """The records' ids."""
        return pd.Series([record.id for record in store.load(self)])

    def examples(self, store: Store) -> "list[Example]":
        """The records with the paths of their images, as models read them."""
        from presel.models.conversations import Example

        images = self.pool.files(store).images
        return [Example(record.paths(images), record.conversations) for record in store.load(self)]


@dataclass(frozen=True, kw_only=True)
class InstructionsStage(SamplesStage):
    """A training file in LLaVA format, `train.json`, and the ledger of the requests, `ledger.parquet`.

    Leaves `unanswered.parquet` too: id and reason (`why`) of the images that got no instruction; and
    `costs.parquet`: id, tokens and money of the answers, where a service bills them. The purpose,
    noted in the ledger, is `reference`, `round 1` …, `selection` or `whole pool`; an image that was requested
    before keeps the first.

    Attributes:
        chosen: A stage whose result is a table with the column `id`: the images to buy instructions for.
        provider: Where instructions come from.
    """

    name: ClassVar[str] = "instructions"

    chosen: Stage[pd.DataFrame]
    provider: InstructionProvider

    def check_data(self, store: Store) -> None:
        """Lets the provider check the pool's files and tasks, or checks a result against its limit.

        The limit is not part of the key: another run may have accepted more images without an instruction.

        Raises:
            PreselError: If too few images of a result have an instruction, or people have changed theirs.
        """
        if not store.has(self):
            self.provider.check(self.pool.files(store), self.pool.task_names(store))
            return
        folder = store.folder(self)
        listed = read_table(folder / UNANSWERED, "id", "why")
        unanswered = dict(zip(listed["id"], listed["why"], strict=True))
        requested = store.manifest(self)["measured"]["requested"]
        if fault := shortage(unanswered, requested, self.provider, folder):
            raise PreselError(f"{fault}; raise that limit, or {remedy(folder)}")
        if self.provider.revisable and store.has(self.chosen):
            self.provider.check_result(self._wanted(store), store.load(self))

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Requests the instructions of the chosen images."""
        wanted, files = self._wanted(store), self.pool.files(store)
        earlier = requests_behind(store, self.chosen)
        records = request(wanted, self.provider, files, folder, self.purpose, earlier)
        self.write(folder, records)
        return {"requested": len(wanted), "unanswered": len(wanted) - len(records)}

    def _wanted(self, store: Store) -> list[InstructionRequest]:
        pool = store.load(self.pool).assign(content=self.pool.contents(store))
        images = self.pool.all_images(store)
        several = images[images["record"].duplicated(keep=False)].groupby("record")
        files = {
            row: tuple(RequestedFile(*file) for file in own[["image", "content"]].itertuples(index=False))
            for row, own in several
        }
        pool["row"] = range(len(pool))
        chosen = pool.set_index("id").loc[store.load(self.chosen)["id"], ["image", "task", "content", "row"]]
        return [
            InstructionRequest(name, image, task, content, files.get(row, ()))
            for name, image, task, content, row in chosen.itertuples(name=None)
        ]
