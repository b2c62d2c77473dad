"""Tasks side by side on the processors."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")

# From this many tasks on they run side by side, whatever the number of processors: see below.
_MANY = 4


def for_each_task(work: Callable[[Item], Result], tasks: Sequence[Item]) -> Iterator[Result]:
    """Does the same work for every task.

    Few tasks run one after the other, and matrix products use all processors. Many run side by side in
    threads, and each product uses one processor, which wastes less on small products. Since the number of
    threads changes the rounding of a product, the number of tasks alone decides between the two, so that one
    seed gives the same result on any number of processors.

    Args:
        work: What to do; may run in several threads at once.
        tasks: On what.

    Yields:
        The results, in the order of the tasks.
    """
    if len(tasks) < _MANY:
        yield from map(work, tasks)
        return
    with threadpool_limits(1), ThreadPoolExecutor(min(len(tasks), cpu_count())) as pool:
        try:
            yield from pool.map(work, tasks)
        finally:
            pool.shutdown(cancel_futures=True)


def cpu_count() -> int:
    """The number of CPUs that the system lets this process use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
