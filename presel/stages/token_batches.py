"""Batches of samples of similar length, for stages that run a model on samples."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from presel.console import progress
from presel.storage.shards import Batches

if TYPE_CHECKING:
    from presel.models.conversations import Encoded, Example
    from presel.models.prompt_pairs import Pair

_log = logging.getLogger(__name__)


def measure(
    examples: Sequence["Example"], encode: Callable[["Example"], "Encoded | Pair"], max_length: int
) -> tuple[list[int], int]:
    """Measures samples as the model reads them, and prints how many are truncated at `max_length` tokens.

    Returns:
        Length of each sample in tokens, (n,), and how many are truncated.
    """
    lengths, truncated = [], 0
    with progress("measuring samples", len(examples)) as advance:
        for example in examples:
            encoded = encode(example)
            lengths.append(len(encoded.ids))
            truncated += encoded.truncated
            advance(1)
    if truncated:
        _log.info(
            f"  {truncated} of {len(examples)} samples are longer than lvlm.max_length={max_length} tokens; "
            "their ends were cut off, as in training"
        )
    return lengths, truncated


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
