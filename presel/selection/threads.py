"""Runs the work of several tasks in parallel threads."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")

# From this number of tasks on they run in parallel, see `for_each_task`.
_MANY = 4


def many(tasks: int) -> bool:
    """Whether that number of tasks is divided among CPUs, each task on one of them; see `for_each_task`."""
    return tasks >= _MANY


def for_each_task(
    work: Callable[[Item], Result], tasks: Sequence[Item], of: int | None = None
) -> Iterator[Result]:
    """Applies a function to every task.

    Few tasks run one after the other, and BLAS uses all CPUs. Many tasks run in parallel threads with
    single-threaded BLAS, which is faster for small matrix products. Since the number of BLAS threads changes
    the rounding of a product, only the number of tasks decides between the two: of many tasks one seed then
    gives the same result on any number of CPUs; of few, the last digits may depend on it.

    Args:
        work: The function; must be thread-safe.
        tasks: Its arguments.
        of: Number of all tasks, if these are the ones that an interrupted run or other processes left.

    Yields:
        The results, in the order of the tasks.
    """
    if not tasks or not many(len(tasks) if of is None else of):
        yield from map(work, tasks)
        return
    with threadpool_limits(1), ThreadPoolExecutor(min(len(tasks), cpu_count())) as pool:
        try:
            yield from pool.map(work, tasks)
        finally:
            pool.shutdown(cancel_futures=True)


def cpu_count() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
