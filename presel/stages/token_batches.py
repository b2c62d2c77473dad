"""Batches of samples of similar length, for stages that run a model on samples."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from presel.console import progress
from presel.errors import PreselError
from presel.storage.files import atomic, checked, read_json
from presel.storage.shards import Batches, Shards

if TYPE_CHECKING:
    from presel.models.conversations import Encoded, Example
    from presel.models.prompt_pairs import Pair

_log = logging.getLogger(__name__)

AnyShards = TypeVar("AnyShards", bound=Shards[int, Any])
Encoding = TypeVar("Encoding")


def measure(
    folder: Path,
    examples: Sequence["Example"],
    encode: Callable[["Example"], "Encoded | Pair"],
    max_length: int,
    *,
    ids: Callable[[], pd.Series] | None = None,
) -> tuple[list[int], int]:
    """Measures samples as the model reads them, and prints how many are truncated at `max_length` tokens.

    It does so once for all processes that compute a stage, and all runs that it is interrupted in.

    Args:
        folder: The stage's folder.
        examples: The samples.
        encode: Encodes one.
        max_length: The maximum length that it truncates at.
        ids: Reads their records' ids, if each must have a response within that length.

    Returns:
        Length of each sample in tokens, (n,), and how many are truncated.

    Raises:
        PreselError: If one has none.
    """
    file = folder / "shards" / "lengths.json"
    if file.exists():
        measured = read_json(checked(file))
        return measured["lengths"], measured["truncated"]
    lengths, truncated = [], 0
    with progress("measuring samples", len(examples)) as advance:
        for number, example in enumerate(examples):
            encoded = encode(example)
            if ids is not None and not encoded.answered:
                raise PreselError(
                    f"record '{ids().iloc[number]}': none of its responses lies within lvlm.max_length="
                    f"{max_length} tokens, so it has no loss; raise lvlm.max_length, or leave the record out"
                )
            lengths.append(len(encoded.ids))
            truncated += encoded.truncated
            advance(1)
    if truncated:
        _log.info(
            f"  {truncated} of {len(examples)} samples are longer than lvlm.max_length={max_length} tokens; "
            "their ends were cut off, as in training"
        )
    with atomic(file, with_digest=True) as temporary:
        temporary.write_text(json.dumps({"lengths": lengths, "truncated": truncated}))
    return lengths, truncated


def shards_by_length(
    kind: type[AnyShards],
    folder: Path,
    lengths: Sequence[int],
    tokens: int,
    *,
    label: str,
    name: Callable[[int], str],
    compute: Callable[[Batches[int]], Iterator[Any]],
    measured: Mapping[str, Any] | None = None,
) -> AnyShards:
    """Shards of samples, named by their row numbers, the longest first.

    Args:
        kind: Form of the shards.
        folder: The stage's folder.
        lengths: Tokens of every sample, (n,).
        tokens: Maximum tokens per batch, see `cut_by_tokens`.
        label: Label of the progress bar.
        name: What messages call the sample of a row.
        compute: Yields one result per batch.
        measured: Measurements that were made beforehand.
    """
    return kind(
        folder=folder / "shards",
        items=longest_first(lengths),
        label=label,
        name=name,
        to_batches=partial(cut_by_tokens, lengths=lengths, tokens=tokens),
        compute_batches=compute,
        measured=measured or {},
    )


def encoded_batches(
    batches: Batches[int],
    examples: "Sequence[Example]",
    encode: "Callable[[Sequence[Example]], Encoding]",
    workers: int,
) -> Iterator[tuple[Sequence[int], Encoding]]:
    """Encodes batches in worker processes, ahead of the model; yields each with its row numbers."""
    from presel.models.prefetch import prefetched

    chosen = [[examples[row] for row in batch] for batch in batches]
    yield from zip(batches, prefetched(chosen, encode, workers), strict=True)


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Row numbers by descending length; a stable sort."""
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])


def cut_by_tokens(rows: Sequence[int], lengths: Sequence[int], tokens: int) -> Batches[int]:
    """Divides some samples, row numbers longest first, into batches of at most `tokens` tokens with padding.

    See `presel.models.batching.fill_batches`; `lengths` holds the tokens of every sample, (n,).
    """
    from presel.models.batching import fill_batches

    return [
        [rows[place] for place in batch] for batch in fill_batches([lengths[row] for row in rows], tokens)
    ]
