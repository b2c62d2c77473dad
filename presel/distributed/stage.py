"""Stages that several processes may work on."""

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

from presel.distributed.description import describe, rebuild
from presel.errors import PreselError
from presel.models.hardware import Hardware
from presel.storage.files import read_json, write_json
from presel.storage.shards import Shards
from presel.storage.stage import Stage, T_co
from presel.storage.store import Store

_TASK, _RESULT = "task.json", "result.json"


class ParallelStage(Stage[T_co]):
    """A stage that several processes may work on, each on its share.

    Attributes:
        hardware: How many.
        workers: Processes that prepare batches, on each node.
    """

    hardware: Hardware
    workers: int

    @abstractmethod
    def work(self, store: Store, folder: Path, rank: int, processes: int) -> dict[str, Any]:
        """Does one process's share.

        Args:
            store: Where the stage's inputs are.
            folder: The stage's own.
            rank: Number of the process.
            processes: How many there are.

        Returns:
            Measurements, of which those of the first process are kept.
        """

    def work_in_processes(self, store: Store, folder: Path) -> dict[str, Any]:
        """Has all processes do their shares, and waits for them.

        Returns:
            What the first of them measured.

        Raises:
            PreselError: If one of them fails.
        """
        from presel.distributed.launch import torchrun
        from presel.models.hardware import processes_on_node, resolved

        task = folder / "processes"
        # Where only what comes after them was cut off, they need not start again.
        if not (task / _RESULT).exists():
            each = -(-self.workers // processes_on_node(self.hardware))
            # All processes are to use the kind of device that is in the stage's key.
            hardware = resolved(self.hardware)
            described = describe(replace(self, workers=each, hardware=hardware))  # type: ignore[type-var]
            write_json(task / _TASK, {"store": str(store.root), "folder": str(folder), "stage": described})
            try:
                torchrun("presel.distributed.worker", task, self.hardware)
            except PreselError as error:
                raise PreselError(f"{self.label}: {error}") from error
        measured: dict[str, Any] = read_json(task / _RESULT)
        return measured


def work_in(task: Path, rank: int, processes: int, device: int) -> None:
    """Does one process's share of the stage described in a folder, and leaves its measurements there.

    Args:
        task: The folder.
        rank: Number of the process.
        processes: How many there are.
        device: Number of its GPU, where there are any.
    """
    import torch

    from presel.models.hardware import device_for

    told = read_json(task / _TASK)
    stage = rebuild(told["stage"])
    assert isinstance(stage, ParallelStage)
    if device_for(stage.hardware.accelerator).type == "cuda":
        torch.cuda.set_device(device)
    measured = stage.work(Store(Path(told["store"]), _Silent()), Path(told["folder"]), rank, processes)
    if not rank:
        write_json(task / _RESULT, measured)
    if torch.distributed.is_initialized():
        # None may leave while another one still reads from it.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class _Silent:
    """Reports nothing: the process that runs the pipeline does."""

    def started(self, label: str) -> None:
        """Says nothing."""

    def waiting(self, label: str) -> None:
        """Says nothing."""

    def finished(self, label: str, key: str, seconds: float | None) -> None:
        """Says nothing."""


class ShardedStage(ParallelStage[T_co]):
    """A stage that computes shard after shard and then joins them."""

    @abstractmethod
    def shards(self, store: Store, folder: Path) -> Shards[Any, Any]:
        """Everything there is to compute."""

    @abstractmethod
    def join(self, store: Store, folder: Path, shards: Shards[Any, Any]) -> dict[str, Any]:
        """Makes the stage's result of the shards; returns what was measured."""

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Computes the missing shards and joins all of them."""
        shards = self.shards(store, folder)
        if self.hardware.strategy != "single" and len(shards.missing()) > 1:
            self.work_in_processes(store, folder)
        shards.compute()
        return self.join(store, folder, shards)

    def work(self, store: Store, folder: Path, rank: int, processes: int) -> dict[str, Any]:
        """Computes every `processes`-th shard."""
        self.shards(store, folder).compute(rank, processes)
        return {}
