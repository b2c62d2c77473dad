"""The ledger: instructions are sealed, and every one that is asked for is written down first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from presel.data.listing import PoolFiles
from presel.data.llava import Record
from presel.errors import PreselError
from presel.instructions.provider import InstructionProvider, Wanted
from presel.storage.files import write_table
from presel.storage.stage import Stage, upstream
from presel.storage.store import Store

LEDGER = "ledger.parquet"
UNANSWERED = "unanswered.parquet"


def request(
    wanted: Sequence[Wanted], provider: InstructionProvider, files: PoolFiles, folder: Path, stage: str
) -> list[Record]:
    """Writes every id and the asking stage into the ledger, then asks for the instructions.

    Args:
        wanted: The chosen images.
        provider: Who is asked.
        files: The pool's files.
        folder: Takes the ledger, and the list of images without an instruction.
        stage: Who asks.

    Returns:
        The instructions, in the order of the images.

    Raises:
        PreselError: If the provider gives other instructions than those asked for, or too few.
    """
    write_table(folder / LEDGER, pd.DataFrame({"id": [image.id for image in wanted], "stage": stage}))
    records, reasons = provider.reveal(wanted, files)
    # A reason may quote half of a surrogate pair, which no file can hold.
    unanswered = {name: why.encode("utf-8", "replace").decode() for name, why in reasons.items()}
    found = {record.id: record for record in records}
    if len(found) != len(records) or {image.id for image in wanted} != found.keys() | unanswered.keys():
        raise PreselError(
            f"{type(provider).__name__} gave {len(records)} instructions and {len(unanswered)} reasons for "
            f"none, not one for each of the {len(wanted)} images asked for"
        )
    listed = pd.DataFrame({"id": list(unanswered), "why": list(unanswered.values())}, dtype=object)
    write_table(folder / UNANSWERED, listed)
    too_many = len(unanswered) > provider.max_unanswered_share * len(wanted)
    if not records or too_many:
        name, why = next(iter(unanswered.items()))
        share = f"instructions.max_unanswered_share={provider.max_unanswered_share:g}"
        limit = f"more than {share} allows" if too_many else "and there is nothing to train on without any"
        raise PreselError(
            f"{len(unanswered)} of {len(wanted)} images have no instruction, {limit} (first: '{name}': "
            f"{why}); all are listed in {folder / UNANSWERED}; what was answered is kept"
        )
    return [found[image.id] for image in wanted if image.id in found]


def requested_ids(store: Store, stage: Stage[Any]) -> set[str]:
    """The images whose instructions were requested on the way to a stage, by the ledgers on that way."""
    ledgers = [store.verified(step) / LEDGER for step in upstream(stage) if step.name == "instructions"]
    return {name for ledger in ledgers for name in pd.read_parquet(ledger)["id"]}
