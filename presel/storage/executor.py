"""Where shards are computed: in this process, or wherever an executor places them."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from presel.storage.shards import Shards

if TYPE_CHECKING:
    from presel.storage.store import Store


class Sharded(ABC):
    """Work in shards. Other processes get it pickled, and find its shards themselves."""

    @abstractmethod
    def shards(self, store: "Store", folder: Path) -> Shards[Any, Any]:
        """All shards; what takes long or memory is done only when they are computed."""

    @property
    def uses_gpu(self) -> bool:
        """Whether it runs a model on a GPU."""
        return False

    def with_workers(self, workers: int) -> "Sharded":
        """The same work for another process, which has that number of worker processes."""
        return self


class Executor:
    """Computes shards, in this process; subclasses share them among several.

    How does not decide the results, so that no executor is part of a key.
    """

    # Whether models run on this machine.
    on_this_machine: ClassVar[bool] = True

    def compute(self, work: Sharded, store: "Store", folder: Path) -> Any:
        """Computes the missing shards.

        Args:
            work: The work.
            store: Where it reads its inputs.
            folder: The folder it writes to.

        Returns:
            What `work.shards` returns, all files of it written.

        Raises:
            PreselError: If a shard cannot be computed.
        """
        shards = work.shards(store, folder)
        self.run(work, store, folder, shards)
        shards.compute()
        return shards

    def run(self, work: Sharded, store: "Store", folder: Path, shards: Shards[Any, Any]) -> None:
        """Lets other processes compute missing shards; this one then computes what they left."""

    def close(self) -> None:
        """Ends what was started for a run."""
