"""Plans the batches: random optimizer steps, split into micro-batches, and batches of bounded size."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import Sampler

from presel.errors import PreselError
from presel.models.inputs import Inputs
from presel.storage.shards import chunks

Result = TypeVar("Result")


class MicroBatch(NamedTuple):
    """The samples of one forward pass.

    Attributes:
        rows: Their row numbers in the training set; empty if it only keeps a process in step with others.
        step_tokens: Response tokens of the whole optimizer step, by which its loss is divided.
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
    epoch: int = 0,
    *,
    text_only: Sequence[bool] = (),
    by_length: bool = True,
) -> list[Step]:
    """Draws the optimizer steps of an epoch uniformly at random, and splits each into micro-batches.

    As in LLaVA's training (`get_modality_length_grouped_indices`), samples are grouped by length only inside
    a step: a step of samples of similar length would contain only one or two tasks. Samples with and without
    an image have steps of their own, in random order, but for what is left of both at the end: chats are
    long, and would outweigh the images' short answers in the loss of a common step.

    Args:
        ids: Ids of the samples, (n,), all different. Together with seed and epoch they decide the order,
            which therefore does not depend on the order of the rows.
        lengths: Tokens of each sample, (n,).
        response_tokens: Supervised tokens of each sample, (n,).
        batch_size: Samples per step; the last step may have fewer.
        micro_batch_size: Samples per micro-batch; the last one of a step may have fewer.
        seed: Seeds the order.
        epoch: Number of the epoch; together with the seed it gives another order.
        text_only: Whether each sample has no image, (n,); empty if all have one.
        by_length: Whether micro-batches group samples of similar length, the longest first, which saves
            padding; otherwise they are random too.

    Returns:
        The steps; each sample occurs once.
    """
    by_id = np.array(sorted(range(len(ids)), key=lambda row: ids[row]), dtype=np.int64)
    rng = np.random.default_rng([seed, epoch])
    order = by_id[rng.permutation(len(ids))].tolist()
    steps = []
    for drawn in _drawn_steps(order, text_only, batch_size, rng):
        step_tokens = sum(response_tokens[row] for row in drawn)
        rows = sorted(drawn, key=lambda row: -lengths[row]) if by_length else drawn
        steps.append([MicroBatch(list(part), step_tokens) for part in chunks(rows, micro_batch_size)])
    return steps


def _drawn_steps(
    order: Sequence[int], text_only: Sequence[bool], batch_size: int, rng: np.random.Generator
) -> list[Sequence[int]]:
    """Cuts samples in random order, (n,), into steps of one modality, and those left at the end of both."""
    if not any(text_only) or all(text_only):
        return list(chunks(order, batch_size))
    whole: list[Sequence[int]] = []
    left: list[int] = []
    for modality in (False, True):
        *before, last = chunks([row for row in order if text_only[row] == modality], batch_size)
        whole += before
        left += last
    mixed = [left[place] for place in rng.permutation(len(left))]
    return [whole[place] for place in rng.permutation(len(whole))] + list(chunks(mixed, batch_size))


def split_across_ranks(steps: Sequence[Step], rank: int, processes: int, micro_batches: int) -> list[Step]:
    """One process's share of the steps; together the processes compute the same steps as a single one.

    A share has every `processes`-th micro-batch of each step: consecutive ones have similar lengths, so that
    no process waits long for another. A step of fewer than `micro_batches`, a multiple of `processes`, is
    padded with empty ones.
    """
    shares = []
    for step in steps:
        empty = MicroBatch([], step[0].step_tokens)
        shares.append([*step, *([empty] * (micro_batches - len(step)))][rank::processes])
    return shares


def fill_batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Fills batches up to a number of tokens, padding included.

    Args:
        lengths: Length of each sample in tokens, (n,), longest first.
        tokens: Maximum tokens per batch; a longer sample gets a batch of its own.

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


def halve_on_oom(compute: Callable[[slice], Result], rows: range, tokens: int) -> list[Result]:
    """Computes consecutive samples at once, or in halves where they do not fit into the device's memory.

    Args:
        compute: Computes some of the samples.
        rows: The samples.
        tokens: Tokens of each, padding included, for the error message.

    Returns:
        What `compute` returned for each part, in order.

    Raises:
        PreselError: If a single sample does not fit.
    """
    try:
        return [compute(slice(rows.start, rows.stop))]
    except torch.OutOfMemoryError as error:
        if len(rows) == 1:
            raise PreselError(
                f"a sample of {tokens} tokens does not fit into the device's memory; lower "
                "lvlm.max_length or take a larger device"
            ) from error
    # Outside the handler: its exception keeps the failed attempt's tensors alive.
    middle = len(rows) // 2
    return [part for half in (rows[:middle], rows[middle:]) for part in halve_on_oom(compute, half, tokens)]


def halve_batch_on_oom(compute: Callable[[Inputs], Result], batch: Inputs) -> list[Result]:
    """Computes a batch as `halve_on_oom` does."""
    n_samples, tokens = batch["attention_mask"].shape
    return halve_on_oom(lambda rows: compute(batch.part(rows)), range(n_samples), tokens)


class BatchPlan(Sampler[MicroBatch]):
    """Yields the planned micro-batches of every epoch, after those that are done.

    The length is that of a whole epoch: Lightning counts batches from the start of the epoch even when it
    resumes in the middle.
    """

    def __init__(self, epochs: Sequence[Sequence[Step]], done: int = 0) -> None:
        """Takes the steps of each epoch, and the total number of micro-batches done."""
        self._epochs = [[batch for step in steps for batch in step] for steps in epochs]
        self._resumed_epoch, self._resumed_batch = divmod(done, len(self._epochs[0]))
        self._epoch = self._resumed_epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[MicroBatch]:
        """The remaining micro-batches of this epoch; none if only the end of the last was not recorded."""
        if self._epoch == len(self._epochs):
            return iter(())
        first = self._resumed_batch if self._epoch == self._resumed_epoch else 0
        return iter(self._epochs[self._epoch][first:])

    def __len__(self) -> int:
        """Number of micro-batches in an epoch."""
        return len(self._epochs[0])
