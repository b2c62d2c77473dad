"""The ledger: instructions are sealed, and each request is recorded here before the text is revealed."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from presel.data.errors import RecordError
from presel.data.listing import PoolFiles
from presel.data.llava import LlavaFiles, Record, check_conversation
from presel.errors import PreselError
from presel.instructions.provider import NOT_REQUESTED, InstructionProvider, InstructionRequest
from presel.storage.files import write_table
from presel.storage.stage import Stage, upstream
from presel.storage.store import Store

LEDGER = "ledger.parquet"
UNANSWERED = "unanswered.parquet"
COSTS = "costs.parquet"


def request(
    requests: Sequence[InstructionRequest],
    provider: InstructionProvider,
    files: PoolFiles,
    folder: Path,
    stage: str,
    earlier: Mapping[str, str] | None = None,
) -> list[Record]:
    """Records every image and the requesting stage in the ledger, then requests the instructions.

    Args:
        requests: The chosen images.
        provider: Provides the instructions.
        files: The pool's files.
        folder: Receives the ledger, the list of images without an instruction, and what each image cost.
        stage: Name of the requesting stage.
        earlier: The images that were requested before, each with the first stage that did so.

    Returns:
        The instructions, in the order of the images.

    Raises:
        PreselError: If the provider returns other instructions than those requested, unusable ones, or too
            few.
    """
    ids = [image.id for image in requests]
    stages = [(earlier or {}).get(name, stage) for name in ids]
    write_table(folder / LEDGER, pd.DataFrame({"id": ids, "stage": stages}))
    records, reasons = provider.reveal(requests, files)
    # A reason may quote half of a surrogate pair, which UTF-8 cannot encode.
    unanswered = {name: why.encode("utf-8", "replace").decode() for name, why in reasons.items()}
    found = {record.id: record for record in records}
    if len(found) != len(records) or {image.id for image in requests} != found.keys() | unanswered.keys():
        raise PreselError(
            f"{type(provider).__name__} gave {len(records)} instructions and {len(unanswered)} reasons for "
            f"none, not one for each of the {len(requests)} requested images"
        )
    for record in records:
        try:
            check_conversation(record)
        except RecordError as error:
            raise PreselError(
                f"{type(provider).__name__} gave image '{record.id}' a record where {error}"
            ) from error
    listed = pd.DataFrame({"id": list(unanswered), "why": list(unanswered.values())}, dtype=object)
    write_table(folder / UNANSWERED, listed)
    if costs := provider.costs(requests):
        rows = [(name, cost.tokens, cost.money) for name, cost in costs.items()]
        write_table(folder / COSTS, pd.DataFrame(rows, columns=["id", "tokens", "money"]))
    if fault := shortage(unanswered, len(requests), provider, folder):
        remedy = provider.retry_remedy([image for image in requests if image.id in unanswered])
        raise PreselError(f"{fault}; answers are kept" + (f"; {remedy}" if remedy else ""))
    return [found[image.id] for image in requests if image.id in found]


def read_text_only(names: Sequence[str], files: LlavaFiles, folder: Path, stage: str) -> list[Record]:
    """Records text-only samples and the stage that reads them in a ledger, then reads them.

    They have no image to be selected by, and nobody writes them for this run, so that none counts as
    requested: `requests_behind` reads the ledgers of stages `instructions` only.

    Args:
        names: Ids of the samples.
        files: The pool's files.
        folder: Receives the ledger.
        stage: Name of the reading stage.
    """
    write_table(folder / LEDGER, pd.DataFrame({"id": names, "stage": stage}, dtype=object))
    wanted = set(names)
    return [record for record in files.records() if record.id in wanted]


def shortage(
    unanswered: Mapping[str, str], requested: int, provider: InstructionProvider, folder: Path
) -> str | None:
    """Says that too few images have an instruction, if so; `unanswered` holds the others' reasons."""
    too_many = len(unanswered) > provider.max_unanswered_share * requested
    if len(unanswered) < requested and not too_many:
        return None
    share = f"instructions.max_unanswered_share={provider.max_unanswered_share:g}"
    limit = f"more than {share} allows" if too_many else "and there is nothing to train on without any"
    return (
        f"{len(unanswered)} of {requested} images have no instruction, {limit}: {_counts(unanswered)}; all "
        f"are listed in {folder / UNANSWERED}"
    )


def _counts(unanswered: Mapping[str, str]) -> str:
    """How often each kind of reason occurs, the most frequent first, with an example of that one."""
    kinds = {name: _kind(why) for name, why in unanswered.items()}
    counts = Counter(kinds.values()).most_common()
    counts.sort(key=lambda item: item[0] == NOT_REQUESTED)  # Stable.
    name = next(name for name, kind in kinds.items() if kind == counts[0][0])
    listed = ", ".join(f"{kind} ({count})" for kind, count in counts[:5])
    more = sum(count for _, count in counts[5:])
    return f"{listed}{f', other reasons ({more})' if more else ''}; for example '{name}': {unanswered[name]}"


def _kind(why: str) -> str:
    """The part of a reason that is the same for all images with the same problem."""
    return re.split(r": |, | \(", why, maxsplit=1)[0]


def requests_behind(store: Store, *stages: Stage[Any]) -> dict[str, str]:
    """The images whose instructions stages depend on, each with the stage that requested it first.

    Read from the ledgers of the stages and all before them.
    """
    ledgers = [store.verified(step) / LEDGER for step in upstream(*stages) if step.name == "instructions"]
    first: dict[str, str] = {}
    for table in map(pd.read_parquet, ledgers):
        first = dict(zip(table["id"], table["stage"], strict=True)) | first
    return first


def requested_ids(store: Store, stage: Stage[Any]) -> set[str]:
    """The images whose instructions a stage depends on."""
    return set(requests_behind(store, stage))
