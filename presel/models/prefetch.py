"""Prepares batches in worker processes, ahead of the model."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader

Batch = TypeVar("Batch")
Prepared = TypeVar("Prepared")


def prefetched(
    batches: Sequence[Batch], prepare: Callable[[Batch], Prepared], workers: int
) -> Iterator[Prepared]:
    """Prepares batches in order.

    Args:
        batches: The batches.
        prepare: Reads, decodes and encodes one batch; must be picklable, since workers may be spawned.
        workers: Worker processes; 0 prepares in this process. The result does not depend on it.
    """
    loader: DataLoader[Any] = DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,  # the items are batches already
        num_workers=workers,
        collate_fn=prepare,  # type: ignore[arg-type]
    )
    yield from loader
