"""The order of training samples: every optimizer step is a random sample, cut into micro-batches."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class MicroBatch(NamedTuple):
    """The samples of one forward pass.

    Attributes:
        rows: Their row numbers in the training set; empty where it only keeps a process in step.
        step_tokens: Response tokens of the whole optimizer step, which its loss is divided by.
    """

    rows: list[int]
    step_tokens: int


Step = list[MicroBatch]


def plan_epoch(
    ids: Sequence[str],
    lengths: Sequence[int],
    response_tokens: Sequence[int],
    batch_size: int,
    micro_batch_size: int,
    seed: int,
    by_length: bool = True,
) -> list[Step]:
    """Draws the optimizer steps of an epoch, uniformly at random, and cuts each into micro-batches.

    As in LLaVA's training, lengths play a part only inside a step: a step made of samples of one length
    would be a step on one or two tasks.

    Args:
        ids: Ids of the samples, (n,), all different. They decide the order together with the seed, so that
            the order of the rows does not.
        lengths: Tokens of each sample, (n,).
        response_tokens: Supervised tokens of each sample, (n,).
        batch_size: Samples a step; the last one may hold fewer.
        micro_batch_size: Samples a micro-batch; the last one of a step may hold fewer.
        seed: Decides the order.
        by_length: Whether micro-batches hold samples of like length, the longest first, which saves
            padding; otherwise they are random too.

    Returns:
        The steps, each sample once.
    """
    by_id = np.array(sorted(range(len(ids)), key=lambda row: ids[row]), dtype=np.int64)
    order = by_id[np.random.default_rng(seed).permutation(len(ids))].tolist()
    steps = []
    for drawn in _chunks(order, batch_size):
        step_tokens = sum(response_tokens[row] for row in drawn)
        rows = sorted(drawn, key=lambda row: -lengths[row]) if by_length else drawn
        steps.append([MicroBatch(part, step_tokens) for part in _chunks(rows, micro_batch_size)])
    return steps


def _chunks(values: list[int], size: int) -> list[list[int]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def deal(steps: Sequence[Step], rank: int, processes: int, micro_batches: int) -> list[Step]:
    """One process's share of the steps, so that all together take each step as one process would.

    Args:
        steps: All steps.
        rank: Number of the process.
        processes: How many there are.
        micro_batches: Micro-batches of a full step; `processes` divides it.

    Returns:
        Of each step, every `processes`-th micro-batch: neighbors are of like length, so that no process
        waits long. Where a step is short of micro-batches, empty ones make it up.
    """
    shares = []
    for step in steps:
        idle = MicroBatch([], step[0].step_tokens)
        shares.append([*step, *([idle] * (micro_batches - len(step)))][rank::processes])
    return shares


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


class BatchPlan(Sampler[MicroBatch]):
    """The planned micro-batches of every epoch, going on after those that are done.

    The length stays that of a whole epoch: Lightning counts batches from the start of the epoch also
    when it resumes in the middle.
    """

    def __init__(self, epochs: Sequence[Sequence[Step]], done: int = 0) -> None:
        """Takes the steps of each epoch, and how many micro-batches were done in all."""
        self._epochs = [[batch for step in steps for batch in step] for steps in epochs]
        self._resumed_epoch, self._resumed_batch = divmod(done, len(self._epochs[0]))
        self._epoch = self._resumed_epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[MicroBatch]:
        """Those still to come in this epoch; none, where only the end of the last one was missed."""
        if self._epoch == len(self._epochs):
            return iter(())
        first = self._resumed_batch if self._epoch == self._resumed_epoch else 0
        return iter(self._epochs[self._epoch][first:])

    def __len__(self) -> int:
        """The number of micro-batches in an epoch."""
        return len(self._epochs[0])
