"""The executors that a configuration may name: this machine's processes, or those of a Ray cluster."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

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


@component
class RayExecutor(LocalExecutor):
    """Actors of a Ray cluster whose nodes share the disk of the store; tuning stays on this machine.

    Attributes:
        workers: Processes that prepare batches, of each actor and of tuning; None for one less than `cpus`
            of an actor, and one per core for tuning.
        address: HOST:PORT of a running cluster, or `auto` for that of this machine; None starts Ray on this
            machine for the run.
        gpus: GPUs that an actor takes where a model runs, also part of one; None for one if the trainer uses
            GPUs.
        cpus: Processors that an actor takes.
        memory_gb: Memory that an actor reserves, in GB; None for none.
        actors: Maximum number of actors, for which an autoscaler adds nodes; None for as many as the nodes
            have room for.
        attempts: Workers that may end on one shard before the run stops and names it.
    """

    on_this_machine: ClassVar[bool] = False

    address: str | None = None
    gpus: Annotated[float, Field(ge=0)] | None = None
    cpus: Annotated[float, Field(gt=0)] = 1
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    actors: Annotated[int, Field(ge=1)] | None = None
    attempts: Annotated[int, Field(ge=1)] = 3

    def __post_init__(self) -> None:
        """Checks that Ray is installed."""
        if find_spec("ray") is None:
            raise ValueError("executor=ray needs the package ray; pip install '.[ray]' in the clone")

    def needs(self, work: Sharded) -> dict[str, float]:
        """The resources that an actor asks for, by Ray's names: processors, GPUs, bytes of memory."""
        gpus = (1 if self.gpus is None else self.gpus) if work.uses_gpu else 0
        memory = 0 if self.memory_gb is None else int(self.memory_gb * 1e9)
        wanted = {"CPU": self.cpus, "GPU": gpus, "memory": memory}
        return {name: amount for name, amount in wanted.items() if amount}

    def run(self, work: Sharded, store: Store, folder: Path, shards: Shards[Any, Any]) -> None:
        """Lets actors compute all missing shards, unless they would not be the same."""
        if not shards.device_independent or not shards.missing():
            return
        from presel.distributed.ray_driver import compute_on_actors

        compute_on_actors(self, work, store, folder, shards)

    def close(self) -> None:
        """Ends Ray, if a run started it."""
        # Not imported for that, which takes a second.
        if session := sys.modules.get("presel.distributed.ray_session"):
            session.disconnect()
