"""Stages that several processes may compute together."""

import logging
import math
import pickle
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.models.hardware import (
    check_devices,
    check_precision,
    device_for,
    processes_per_node,
    resolved,
)
from presel.storage.executor import Sharded
from presel.storage.files import atomic, read_json, write_json
from presel.storage.integrity import measurements
from presel.storage.stage import Stage, T_co
from presel.storage.store import Store

_log = logging.getLogger(__name__)

_PROCESSES, _TASK, _RESULT = "processes", "task.pickle", "result.json"


@dataclass(frozen=True, kw_only=True)
class ParallelStage(Stage[T_co]):
    """A stage that several processes may compute together, each its share.

    Attributes:
        runtime: Devices, processes and worker processes.
    """

    runtime: Runtime

    def check(self, store: Store) -> None:
        """Checks the devices of this machine."""
        check_devices(self.runtime.hardware)

    def with_workers(self, workers: int) -> Self:
        """The same stage with `workers` worker processes, on the kind of device that is part of its key."""
        hardware = resolved(self.runtime.hardware)
        return replace(self, runtime=replace(self.runtime, workers=workers, hardware=hardware))

    @abstractmethod
    def work(self, store: Store, folder: Path, rank: int, processes: int) -> dict[str, Any]:
        """Computes the share of one process; returns measurements, of which those of rank 0 are kept."""

    def work_in_processes(self, store: Store, folder: Path) -> dict[str, Any]:
        """Starts all processes on their shares, waits for them, and returns the measurements of rank 0.

        Raises:
            PreselError: If a process fails.
        """
        from presel.distributed.launch import torchrun

        task, hardware = folder / _PROCESSES, self.runtime.hardware
        # There is a result if an earlier run was killed after its processes had finished.
        if not (task / _RESULT).exists():
            workers = math.ceil(self.runtime.workers / processes_per_node(hardware))
            write_task(task, self.with_workers(workers), store.root, folder)
            _log.debug(f"{self.label}: its processes write to {task}/rank-*.log")
            try:
                torchrun("presel.distributed.worker", task, hardware)
            except PreselError as error:
                raise PreselError(f"{self.label}: {error}") from error
        measured: dict[str, Any] = read_json(task / _RESULT)
        return measured


def write_task(task: Path, work: ParallelStage[Any] | Sharded, store: Path, folder: Path) -> None:
    """Writes a stage or other work and its folders to a file for the processes that compute it.

    Pickle, because a stage may hold objects of any class. The file is readable by the user alone, and only
    our own processes read it.
    """
    if isinstance(work, Stage):
        # Cached in the pickled stage, so that no process reads the sources again.
        _ = work.key
    with atomic(task / _TASK, private=True) as temporary:
        temporary.write_bytes(pickle.dumps((work, store, folder)))


def read_task(task: Path) -> tuple[Any, Path, Path]:
    """Reads what `write_task` wrote: the work, the store's folder and the work's folder."""
    content: tuple[Any, Path, Path] = pickle.loads((task / _TASK).read_bytes())
    return content


def work_on(task: Path, rank: int, processes: int, device: int) -> None:
    """Computes one process's share of a stage; rank 0 writes its measurements.

    Args:
        task: The folder given to `write_task`.
        rank: Rank of the process.
        processes: Number of processes.
        device: Number of the process's GPU, if it uses one.
    """
    import torch

    stage, store, folder = read_task(task)
    if device_for(stage.runtime.hardware.accelerator).type == "cuda":
        torch.cuda.set_device(device)
    # Only the process that runs the pipeline shows progress of stages.
    returned = stage.work(Store(store), folder, rank, processes)
    if not rank:
        write_json(task / _RESULT, measurements(returned, f"{type(stage).__qualname__}.work"))
    if torch.distributed.is_initialized():
        # No process may leave while another still receives data from it.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class ShardedStage(ParallelStage[T_co], Sharded):
    """A stage that computes shard after shard and then joins them."""

    @abstractmethod
    def join(self, store: Store, folder: Path, shards: Any) -> dict[str, Any]:
        """Joins what `shards` returned, computed, into the stage's result; returns measurements."""

    @property
    def uses_gpu(self) -> bool:
        """As the trainer's settings say."""
        return device_for(self.runtime.hardware.accelerator).type == "cuda"

    def check(self, store: Store) -> None:
        """Checks the devices of this machine; of others, whether their precision is known."""
        if store.executor.on_this_machine:
            super().check(store)
        else:
            check_precision(self.runtime.hardware)

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Computes the missing shards and joins all of them."""
        return self.join(store, folder, store.executor.compute(self, store, folder))

    def work_in_processes(self, store: Store, folder: Path) -> dict[str, Any]:
        """Starts all processes, whatever rank 0 of an earlier run wrote: the shards tell what is done."""
        (folder / _PROCESSES / _RESULT).unlink(missing_ok=True)
        return super().work_in_processes(store, folder)

    def work(self, store: Store, folder: Path, rank: int, processes: int) -> dict[str, Any]:
        """Computes every `processes`-th shard."""
        shards = self.shards(store, folder)
        shards.compute(range(rank, len(shards.files), processes))
        return {}
