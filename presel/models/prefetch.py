"""Prepares batches in worker processes, ahead of the model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from presel.errors import PreselError

Batch = TypeVar("Batch")
Prepared = TypeVar("Prepared")


def prefetched(
    batches: Sequence[Batch], prepare: Callable[[Batch], Prepared], workers: int
) -> Iterator[Prepared]:
    """Prepares batches in order.

    Args:
        batches: The batches, each an argument of `prepare`.
        prepare: Reads, decodes and encodes a batch; must be picklable, since workers may be spawned.
        workers: Worker processes; 0 prepares in this process. The result does not depend on it.
    """
    loader: DataLoader[Any] = DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,  # the items are batches already
        num_workers=workers,
        collate_fn=prepare,  # type: ignore[arg-type]
    )
    with worker_errors():
        yield from loader


@contextmanager
def worker_errors() -> Iterator[None]:
    """Restores the message of an error in a DataLoader's worker, which PyTorch wraps in the traceback."""
    try:
        yield
    except PreselError as error:
        message = str(error).strip()
        if "\nOriginal Traceback" not in message:
            raise
        # The last line is `presel.data.decoding.BrokenImage: <message>`.
        raise PreselError(message.splitlines()[-1].partition(": ")[2]) from error
