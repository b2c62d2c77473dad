"""The ledger: instructions are sealed, and every one that is revealed is written down first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from pydantic.dataclasses import dataclass as component

from presel.component import STRICT
from presel.data.llava import Record
from presel.data.sources import LlavaFiles
from presel.errors import PreselError
from presel.files import write_table
from presel.store import Stage, Store, upstream

LEDGER = "ledger.parquet"


class InstructionProvider(Protocol):
    """Whoever turns chosen images into instructions; called once they stand in the ledger."""

    def reveal(self, ids: Sequence[str], files: LlavaFiles) -> list[Record]:
        """Gives the instructions of the named images, in that order, and of no others.

        Args:
            ids: The chosen images.
            files: The pool's files.
        """


@component(frozen=True, kw_only=True, config=STRICT)
class Annotations:
    """Instructions that the pool's annotation file holds already."""

    def reveal(self, ids: Sequence[str], files: LlavaFiles) -> list[Record]:
        """Looks the instructions up.

        Raises:
            PreselError: If the annotation file has no record of that id.
        """
        wanted = set(ids)
        records = {record.id: record for record in files.records() if record.id in wanted}
        missing = sorted(wanted - records.keys())
        if missing:
            raise PreselError(
                f"{files.annotations}: no record with id '{missing[0]}' ({len(missing)} of {len(wanted)} "
                "chosen images are missing); run on the file that the pool was read from"
            )
        return [records[name] for name in ids]


def request(
    ids: Sequence[str], provider: InstructionProvider, files: LlavaFiles, ledger: Path, stage: str
) -> list[Record]:
    """Writes every id and the asking stage into the ledger, then asks for the instructions.

    Raises:
        PreselError: If the provider gives other instructions than those asked for.
    """
    write_table(ledger, pd.DataFrame({"id": ids, "stage": stage}))
    records = provider.reveal(ids, files)
    if [record.id for record in records] != list(ids):
        raise PreselError(
            f"{type(provider).__name__} gave {len(records)} instructions, not those of the {len(ids)} images "
            "asked for, in their order"
        )
    return records


def requested_ids(store: Store, stage: Stage[Any]) -> set[str]:
    """The images whose instructions were requested on the way to a stage, by the ledgers on that way."""
    ledgers = [store.folder(step) / LEDGER for step in upstream(stage) if step.name == "instructions"]
    return {name for ledger in ledgers for name in pd.read_parquet(ledger)["id"]}
