"""The ledger: instructions are sealed, and every one that is asked for is written down first."""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass as component

from presel.component import STRICT
from presel.data.listing import PoolFiles
from presel.data.llava import Record
from presel.data.sources import NO_INSTRUCTIONS, Source, annotated
from presel.errors import PreselError
from presel.files import write_table
from presel.store import Stage, Store, upstream

LEDGER = "ledger.parquet"
UNANSWERED = "unanswered.parquet"


class Wanted(NamedTuple):
    """An image whose instruction is asked for.

    Attributes:
        id: Its name in the pool.
        image: Posix path relative to the image folder.
        task: Its task.
        content: Digest of the image file's bytes.
    """

    id: str
    image: str
    task: str
    content: str


class Estimate(NamedTuple):
    """What instructions would cost.

    Attributes:
        tokens: Prompts and answers together.
        money: In the currency of the prices.
    """

    tokens: int
    money: float


class Revealed(NamedTuple):
    """What came of it.

    Attributes:
        records: The instructions.
        unanswered: Why there is none, by image.
    """

    records: list[Record]
    unanswered: dict[str, str]


@component(frozen=True, kw_only=True, config=STRICT)
class InstructionProvider:
    """Base of whoever turns chosen images into instructions.

    Attributes:
        max_unanswered_share: Largest share of chosen images without an instruction that is put up with;
            above it the run stops.
    """

    # Decides whether instructions will do, not what they are.
    max_unanswered_share: Annotated[float, Field(ge=0, le=1)] = field(default=0.0, compare=False)

    def check_overrides(self, overrides: Sequence[str]) -> None:
        """Makes sure that what no configuration file may decide stands on the command line.

        Args:
            overrides: The command line's, as Hydra takes them.

        Raises:
            PreselError: If not.
        """

    def check_source(self, source: Source) -> None:
        """Makes sure, before the pool is read, that it is one whose images can be instructed.

        Raises:
            PreselError: If not.
        """

    def check(self, files: PoolFiles, tasks: Sequence[str]) -> None:
        """Makes sure, before any long work, that instructions can be had.

        Args:
            files: The pool's files.
            tasks: Its tasks.

        Raises:
            PreselError: If not.
        """

    def estimate(self, images: Mapping[str, int]) -> Estimate | None:
        """What instructions for so many images of each task would cost; None where nobody charges."""
        return None

    def exceeded(self, estimate: Estimate) -> list[str]:
        """The limits that such a cost would pass, as settings with their values."""
        return []

    def reveal(self, wanted: Sequence[Wanted], files: PoolFiles) -> Revealed:
        """Gives the instructions of these images and of no others; called once they stand in the ledger.

        Args:
            wanted: The chosen images.
            files: The pool's files.

        Raises:
            Paused: If others have to write them first.
            PreselError: If they cannot be had.
        """
        raise NotImplementedError


@component(frozen=True, kw_only=True, config=STRICT)
class Annotations(InstructionProvider):
    """Instructions that the pool's annotation file holds already."""

    def check_source(self, source: Source) -> None:
        """Makes sure that the source has such a file."""
        if not source.instructed:
            raise PreselError(NO_INSTRUCTIONS)

    def check(self, files: PoolFiles, tasks: Sequence[str]) -> None:
        """Makes sure that there is such a file."""
        annotated(files)

    def reveal(self, wanted: Sequence[Wanted], files: PoolFiles) -> Revealed:
        """Looks the instructions up.

        Raises:
            PreselError: If the annotation file has no record of that id.
        """
        held = annotated(files)
        ids = {image.id for image in wanted}
        records = {record.id: record for record in held.records() if record.id in ids}
        missing = sorted(ids - records.keys())
        if missing:
            raise PreselError(
                f"{held.annotations}: no record with id '{missing[0]}' ({len(missing)} of {len(ids)} "
                "chosen images are missing); run on the file that the pool was read from"
            )
        # Their tasks may have been discovered since the file was written.
        return Revealed([replace(records[image.id], task=image.task) for image in wanted], {})


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
