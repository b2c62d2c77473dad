"""The executors that a configuration may name."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from presel.component import component
from presel.distributed.stage import ParallelStage
from presel.selection.threads import cpu_count
from presel.storage.executor import Executor, Sharded
from presel.storage.shards import Shards
from presel.storage.store import Store


@component
class LocalExecutor(Executor):
    """This process and its worker processes; those of torchrun if the trainer has several.

    Attributes:
        workers: Processes that decode images and prepare batches; None for one per core, 0 for none.
        batch_tokens: Tokens of a forward pass that scores samples, padding included; halved where memory runs
            out.
    """

    workers: Annotated[int, Field(ge=0)] | None = None
    batch_tokens: Annotated[int, Field(ge=1)] = 8192

    def worker_processes(self) -> int:
        """Worker processes on this machine."""
        return cpu_count() if self.workers is None else self.workers

    def run(self, work: Sharded, store: Store, folder: Path, shards: Shards[Any, Any]) -> None:
        """Starts torchrun's processes if there are several and more than one shard to compute."""
        if not isinstance(work, ParallelStage) or work.runtime.hardware.strategy == "single":
            return
        if len(shards.missing()) > 1:
            work.work_in_processes(store, folder)
