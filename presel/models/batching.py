"""The order of training samples: batches of similar length, fixed by the seed."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

# Samples are sorted by length inside groups of this many batches: enough to save padding, few enough
# to keep the order random.
_GROUPED_BATCHES = 50


def plan_batches(lengths: Sequence[int], batch_size: int, seed: int, by_length: bool) -> list[list[int]]:
    """Splits samples into batches, each sample once.

    Args:
        lengths: Length of each sample, (n,), in any unit.
        batch_size: Samples a batch; the last one may hold fewer.
        seed: Decides the order.
        by_length: Whether batches hold samples of similar length.

    Returns:
        Row numbers, batch by batch. The batch of the longest samples comes first, so that a lack of
        memory shows at once.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    if not by_length:
        return [chunk.tolist() for chunk in _chunks(order, batch_size)]
    size = np.asarray(lengths)
    groups = [
        group[np.argsort(-size[group], kind="stable")]
        for group in _chunks(order, batch_size * _GROUPED_BATCHES)
    ]
    batches = [chunk for group in groups for chunk in _chunks(group, batch_size)]
    batches = [batches[position] for position in generator.permutation(len(batches))]
    longest = max(range(len(batches)), key=lambda position: size[batches[position]].max())
    batches.insert(0, batches.pop(longest))
    return [batch.tolist() for batch in batches]


def _chunks(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def deal(batches: list[list[int]], rank: int, processes: int, batches_a_step: int) -> list[list[int]]:
    """One process's share, so that all together take each optimizer step on the batches that one would.

    Args:
        batches: All batches.
        rank: Number of the process.
        processes: How many there are.
        batches_a_step: Batches an optimizer step; `processes` divides it.

    Returns:
        Every `processes`-th batch. Where the last step is short of batches, empty ones make it up.
    """
    missing = -len(batches) % batches_a_step
    return [*batches, *([[]] * missing)][rank::processes]


def fill_batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Fills batches up to a number of tokens, padding counted.

    Args:
        lengths: Length of each sample in tokens, (n,), longest first.
        tokens: Tokens a batch; a longer sample gets a batch of its own.

    Returns:
        Row numbers, batch by batch, in order.
    """
    batches: list[list[int]] = []
    start = 0
    while start < len(lengths):
        size = max(1, tokens // lengths[start])
        batches.append(list(range(start, min(start + size, len(lengths)))))
        start += size
    return batches


class BatchPlan(Sampler[list[int]]):
    """The planned batches of every epoch, going on after those that are done.

    The length stays that of a whole epoch: Lightning counts batches from the start of the epoch also
    when it resumes in the middle.
    """

    def __init__(self, epochs: Sequence[list[list[int]]], done: int = 0) -> None:
        """Takes the batches of each epoch, and how many batches were done in all."""
        self._epochs = epochs
        self._resumed_epoch, self._resumed_batch = divmod(done, len(epochs[0]))
        self._epoch = self._resumed_epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """The batches still to come in this epoch; none, where only the end of the last one was missed."""
        if self._epoch == len(self._epochs):
            return iter(())
        first = self._resumed_batch if self._epoch == self._resumed_epoch else 0
        return iter(self._epochs[self._epoch][first:])

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self._epochs[0])
