"""A worker on a node of a Ray cluster: an actor that computes shards of one work, and writes them as files.

Only the shards' numbers travel, and errors: what a worker reads, instructions among it, is in the store.
"""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Opened(NamedTuple):
    """What a worker says once it has read its work.

    Attributes:
        fault: Why it cannot be computed on its node, in one sentence; None if it can.
        device: The model of its GPU; None if it uses none.
    """

    fault: str | None = None
    device: str | None = None


class Worker:
    """Computes shards of one work.

    What may fail is no part of `__init__`, whose errors Ray takes for the end of the process. Nothing is
    imported before a method is called: it may take long, and the driver waits for workers to be placed.
    """

    def __init__(self, task: Path, directory: Path) -> None:
        """Takes the folder given to `write_task`, and the directory that the driver was started in."""
        self._task, self._directory = task, directory
        self._shards: Any = None
        self._store: Any = None

    def node(self) -> str:
        """The address of its node, once it is placed."""
        import ray

        return str(ray.util.get_node_ip_address())

    def open(self) -> Opened:
        """Reads the work, and looks whether the node has what it needs."""
        for needed in (self._directory, self._task):
            if not needed.exists():
                return Opened(
                    f"node {self.node()} does not see {needed}; the store, the images and the folder where "
                    "the command is started must be on a disk that all nodes share, under the same path"
                )
        # Paths in the settings may be relative, and a strategy of the user's own lies there.
        os.chdir(self._directory)
        sys.path.append(str(self._directory))
        from presel.console import silence_libraries
        from presel.distributed.stage import read_task
        from presel.errors import PreselError
        from presel.storage.store import Store

        silence_libraries()
        work, store, folder = read_task(self._task)
        self._store = Store(store)
        try:
            self._shards = work.shards(self._store, folder)
        except PreselError as error:
            return Opened(f"node {self.node()}: {error}")
        return Opened(device=_gpu() if work.uses_gpu else None)

    def compute(self, numbers: list[int]) -> str | None:
        """Computes shards, in this order; returns one sentence if the user must mend something."""
        from presel.data.images import WorkerDied
        from presel.errors import PreselError

        try:
            self._shards.compute(numbers)
        except WorkerDied:
            raise
        except PreselError as error:
            return str(error)
        except Exception as error:
            if (fault := self._store.write_fault(error)) is None:
                raise
            return f"{self._shards.label} on node {self.node()}: {fault}"
        return None


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name()
