"""Places shards on actors of a Ray cluster, and goes on where some of them end.

Which shards are done is told by their files alone. So nothing is lost with an actor but the shard that it is
at, and nothing but numbers passes through Ray.
"""

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.exceptions import RayError

from presel.console import progress
from presel.distributed.ray_session import connect
from presel.distributed.ray_worker import Worker
from presel.distributed.stage import write_task
from presel.errors import PreselError
from presel.storage.executor import Sharded
from presel.storage.files import atomic
from presel.storage.shards import Shards
from presel.storage.store import Store

if TYPE_CHECKING:
    from presel.distributed.executors import RayExecutor

_log = logging.getLogger(__name__)

# How often files are counted and the cluster's nodes looked at.
_POLL_S = 1.0
# After these times without a single worker, and without one that is ready, the user is told.
_PLACED_WITHIN_S = 50.0
_OPENED_WITHIN_S = 300.0
# Network file systems show a file that another machine wrote after a minute at most.
_SEEN_WITHIN_S = 90.0
# Ids that a message names; a file lists them all.
_NAMED = 3


class _Call(NamedTuple):
    """A method that runs on a worker.

    Attributes:
        worker: The actor.
        method: `node`, `open` or `compute`.
        numbers: The shards that it computes, in order; those that have a file are taken off.
        node: The address of the worker's node, once it is placed.
    """

    worker: Any
    method: str
    numbers: deque[int]
    node: str | None = None


def compute_on_actors(
    executor: "RayExecutor", work: Sharded, store: Store, folder: Path, shards: Shards[Any, Any]
) -> None:
    """Computes the missing shards of a work on the actors of a cluster.

    Args:
        executor: The settings.
        work: The work.
        store: Where it reads its inputs.
        folder: The folder it writes to.
        shards: Its shards.

    Raises:
        PreselError: If there is no room for an actor, a node does not see the store, the work has a mistake
            of the user, or a shard ends one worker after the other.
    """
    connect(executor.address)
    task = folder / "processes"
    workers = executor.workers if executor.workers is not None else max(0, int(executor.cpus) - 1)
    write_task(task, work.with_workers(workers), store.root, folder)
    driver = _Driver(executor, executor.needs(work), task, shards)
    try:
        driver.run()
    finally:
        driver.end_workers()
    _wait_for_files(shards)


class _Driver:
    """Computes the missing shards of one work."""

    def __init__(
        self, executor: "RayExecutor", needs: Mapping[str, float], task: Path, shards: Shards[Any, Any]
    ) -> None:
        """Takes the settings, what an actor asks for, the folder of the task, and the shards."""
        self._executor, self._needs, self._task, self._shards = executor, needs, task, shards
        self._files = shards.files
        self._left = deque(shards.missing())
        # Shards that a worker ended on, computed alone.
        self._suspects: deque[int] = deque()
        self._ended: Counter[int] = Counter()
        # By node; None before they are placed.
        self._failed_starts: Counter[str | None] = Counter()
        self._workers: list[Any] = []
        # With the addresses of their nodes.
        self._idle: list[tuple[Any, str | None]] = []
        self._calls: dict[Any, _Call] = {}
        self._devices: set[str] = set()
        # When a worker last was ready, or a call ended; and whether the user was warned that none has since.
        self._last_progress, self._warned = time.monotonic(), False

    def run(self) -> None:
        """Returns once every shard is computed."""
        total = len(self._shards.items)
        with progress(self._shards.label, total) as advance:
            advance(total - sum(self._size(number) for number in self._left))
            while self._unfinished:
                self._start_workers()
                self._assign()
                finished, _ = ray.wait(list(self._calls), timeout=_POLL_S)
                for reference in finished:
                    self._finish(self._calls.pop(reference), reference, advance)
                for call in self._calls.values():
                    self._take_off_written(call, advance)
                self._check_placed()

    def end_workers(self) -> None:
        """Ends all actors, also those that wait to be placed."""
        for worker in self._workers:
            ray.kill(worker)

    @property
    def _unfinished(self) -> int:
        """Number of shards without a file."""
        return len(self._left) + len(self._suspects) + sum(len(call.numbers) for call in self._calls.values())

    def _size(self, number: int) -> int:
        return len(self._shards.items_of(number))

    def _start_workers(self) -> None:
        # An autoscaler adds nodes for those that have no room yet.
        actors = self._executor.actors if self._executor.address is not None else None
        room = actors or max(1, self._room())
        wanted = min(self._unfinished, self._executor.actors or self._unfinished, room)
        while len(self._workers) < wanted:
            # Spread, since nodes have disks, networks and decoders of their own.
            actor = ray.remote(Worker).options(
                num_cpus=self._needs.get("CPU", 0),
                num_gpus=self._needs.get("GPU", 0),
                memory=self._needs.get("memory"),
                max_restarts=0,
                scheduling_strategy="SPREAD",
            )
            self._workers.append(actor.remote(self._task, Path.cwd()))
            self._call(self._workers[-1], "node")

    def _room(self) -> int:
        """Number of actors that the cluster's nodes have room for, taken ones too."""
        return room_for(self._needs, [node["Resources"] for node in ray.nodes() if node["Alive"]])

    def _assign(self) -> None:
        while self._idle and (self._suspects or self._left):
            if self._suspects:
                numbers = [self._suspects.popleft()]
            else:
                # A call loads the model, so that there are few; smaller ones at the end, so that all workers
                # end together.
                count = 1 if self._shards.size == 1 else max(1, len(self._left) // (2 * len(self._workers)))
                numbers = [self._left.popleft() for _ in range(count)]
            worker, node = self._idle.pop()
            self._call(worker, "compute", numbers, node)

    def _call(
        self, worker: Any, method: str, numbers: list[int] | None = None, node: str | None = None
    ) -> None:
        arguments = [] if numbers is None else [numbers]
        reference = getattr(worker, method).remote(*arguments)
        self._calls[reference] = _Call(worker, method, deque(numbers or []), node)

    def _finish(self, call: _Call, reference: Any, advance: Any) -> None:
        """Handles the end of a call: its result, an error, or the end of its worker."""
        try:
            result = ray.get(reference)
        except RayError as error:
            self._take_off_written(call, advance)
            self._lose(call, error)
            return
        self._last_progress = time.monotonic()
        # So that a node where workers are placed, and never open, is found out.
        self._failed_starts.pop(call.node, None)
        if call.method == "node":
            self._call(call.worker, "open", node=result)
            return
        fault = result.fault if call.method == "open" else result
        if fault is not None:
            raise PreselError(f"executor=ray: {fault}" if call.method == "open" else fault)
        if call.method == "open":
            self._note_device(result.device)
        advance(sum(map(self._size, call.numbers)))
        self._idle.append((call.worker, call.node))

    def _take_off_written(self, call: _Call, advance: Any) -> None:
        """Takes the shards off a call that are written already."""
        while call.numbers and self._files[call.numbers[0]].exists():
            advance(self._size(call.numbers.popleft()))

    def _lose(self, call: _Call, error: RayError) -> None:
        """Gives the shards of a lost worker to others.

        Raises:
            PreselError: If several workers ended on the shard that it was at, or while they started.
        """
        self._workers.remove(call.worker)
        # An error leaves it alive.
        ray.kill(call.worker)
        reason = _reason(error)
        _log.debug(f"a worker ended in '{call.method}': {reason}")
        counts = not getattr(error, "preempted", False)
        if call.method != "compute":
            self._failed_starts[call.node] += counts
            if self._failed_starts[call.node] >= self._executor.attempts:
                where = "" if call.node is None else f" on node {call.node}"
                raise PreselError(
                    f"executor=ray: {self._executor.attempts} workers ended while they started{where}, the "
                    f"last one by: {reason}; all nodes need the same presel, packages and Python, and a user "
                    f"who may read {self._task}"
                )
        elif call.numbers:
            number = call.numbers.popleft()
            self._suspects.append(number)
            self._left.extendleft(reversed(call.numbers))
            self._ended[number] += counts
            if self._ended[number] >= self._executor.attempts:
                raise PreselError(self._repeated_crash(number, reason))

    def _repeated_crash(self, number: int, reason: str) -> str:
        names = [self._shards.name(item) for item in self._shards.items_of(number)]
        file = self._task / f"shard-{number:05}.txt"
        with atomic(file) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names), errors="backslashreplace")
        named = ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
        return (
            f"{self._shards.label}: shard {number} ended {self._ended[number]} workers, the last one by: "
            f"{reason}; its {len(names)} items ({named}) are listed in {file}; look for what is wrong with "
            "them, or give each worker more by executor.memory_gb: the same command continues"
        )

    def _note_device(self, device: str | None) -> None:
        if device is None or device in self._devices:
            return
        self._devices.add(device)
        if len(self._devices) > 1:
            _log.warning(
                f"the cluster's GPUs are of several kinds ({', '.join(sorted(self._devices))}), which round "
                "differently: another run may differ in the last digits"
            )

    def _check_placed(self) -> None:
        """Warns once if no worker has been placed, or ready, for a while.

        Raises:
            PreselError: If no node is large enough for one, and none can be expected.
        """
        if self._idle or any(call.method == "compute" for call in self._calls.values()):
            self._last_progress = time.monotonic()
        waited = time.monotonic() - self._last_progress
        if opening := {call.node for call in self._calls.values() if call.method == "open"}:
            if waited > _OPENED_WITHIN_S:
                nodes = ", ".join(map(str, opening))
                self._warn(f"{nodes}: importing packages and reading {self._task} takes long there")
            return
        overdue = waited > _PLACED_WITHIN_S
        # Ray that the run started gets no further nodes.
        more_nodes = self._executor.address is not None and (self._executor.actors is not None or not overdue)
        if not self._room() and not more_nodes:
            raise PreselError(
                f"executor=ray: no node is large enough: {self._resources()}; ask for less by executor.cpus, "
                "gpus and memory_gb, or add a node; executor.actors asks an autoscaler for them"
            )
        if overdue:
            self._warn(
                f"waiting for a free node, or for a process that is slow to start: {self._resources()}"
            )

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(message)

    def _resources(self) -> str:
        return (
            f"each worker asks for {_amounts(self._needs)}; the cluster has "
            f"{_amounts(ray.cluster_resources())} on all nodes together, of which "
            f"{_amounts(ray.available_resources())} are free"
        )


def room_for(needs: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """Number of workers that find room on the nodes, given what each needs and what each node has."""
    # Rounded up a little: in binary, 0.3 holds 0.1 not quite three times.
    return sum(
        math.floor(min(node.get(name, 0) / amount for name, amount in needs.items()) + 1e-6) for node in nodes
    )


def _amounts(resources: Mapping[str, float]) -> str:
    """Resources in words, as in `2 CPU, 1 GPU, 10.5 GB`."""
    amounts = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)]
    if resources.get("memory"):
        amounts.append(f"{resources['memory'] / 1e9:.1f} GB")
    return ", ".join(amounts) or "nothing"


def _reason(error: RayError) -> str:
    """The cause of an error in one line: the last one of a traceback, or what Ray says of the process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ray.exceptions.RayTaskError):
        return lines[-1]
    # The first lines are the actor's names.
    told = [line for line in lines if not line.startswith(("class_name", "actor_id", "namespace", "name:"))]
    return " ".join(told)


def _wait_for_files(shards: Shards[Any, Any]) -> None:
    """Waits until this machine sees what others wrote."""
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while missing := shards.missing():
        if time.monotonic() > deadline:
            raise PreselError(
                f"executor=ray: {len(missing)} shards that workers wrote into {shards.folder} are not seen "
                "here; the store must be on a disk that all machines share"
            )
        time.sleep(_POLL_S)
