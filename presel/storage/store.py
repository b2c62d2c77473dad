"""Store of results: each stage is computed once and found again by its key; interruptions are safe."""

import errno
import math
import os
import resource
import shutil
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from presel.errors import PreselError
from presel.storage.executor import Executor
from presel.storage.files import delete_temporary_files, sync_tree
from presel.storage.integrity import MANIFEST, check_result, measurements, read_manifest, write_manifest
from presel.storage.provenance import git_commit, versions
from presel.storage.stage import Stage, T_co, upstream

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL_BELOW_BYTES = 1_000_000


class Reporter(Protocol):
    """Shows the progress of stages."""

    def started(self, label: str) -> None:
        """A stage starts computing."""

    def waiting(self, label: str) -> None:
        """Another process is computing the stage, and this one waits for it."""

    def finished(self, label: str, key: str, seconds: float | None) -> None:
        """A stage's result is in the store; `seconds` is None if it was reused."""


class Store:
    """Holds every result in `<root>/<stage>/<key>/`; a folder without a manifest is unfinished."""

    def __init__(
        self,
        root: Path,
        reporter: Reporter | None = None,
        min_free_gb: float = 0.0,
        executor: Executor | None = None,
    ) -> None:
        """Opens a store.

        Args:
            root: Its folder, created if missing.
            reporter: Shows the progress of every stage; None shows nothing.
            min_free_gb: Refuse to compute anything with less free disk space than this, in GB.
            executor: Computes the shards of stages; None computes all in this process.
        """
        self.root = root.absolute()
        self.executor = Executor() if executor is None else executor
        self._reporter = reporter
        self._min_free_gb = min_free_gb
        self._reported: set[Path] = set()
        self._verified: set[Path] = set()
        # Cached: the manifest of a million images takes seconds to read.
        self._manifests: dict[Path, dict[str, Any]] = {}

    def folder(self, stage: Stage[Any]) -> Path:
        """The folder of the stage's result, which need not exist."""
        return self.root / stage.name / stage.key

    def has(self, stage: Stage[Any]) -> bool:
        """Whether the stage's result is finished."""
        return (self.folder(stage) / MANIFEST).exists()

    def load(self, stage: Stage[T_co]) -> T_co:
        """The stage's result, computed first if it is missing.

        Raises:
            PreselError: As `verified` does.
        """
        folder = self.verified(stage)
        try:
            return stage.load(folder)
        except Exception:
            # The cause may be damage in a result that is too large to be hashed at every run.
            check_result(folder, math.inf)
            raise

    def verified(self, stage: Stage[Any]) -> Path:
        """The stage's finished folder for reading, computed first if it is missing.

        Raises:
            PreselError: As `ensure` does; if the result is damaged, digests included.
        """
        folder = self.ensure(stage)
        if folder not in self._verified:
            check_result(folder, manifest=self.manifest(stage))
            self._verified.add(folder)
        return folder

    def manifest(self, stage: Stage[Any]) -> dict[str, Any]:
        """The manifest of a finished stage."""
        folder = self.folder(stage)
        if folder not in self._manifests:
            self._manifests[folder] = read_manifest(folder)
        return self._manifests[folder]

    def ensure(self, stage: Stage[Any]) -> Path:
        """Computes the stage, its inputs first, unless it is finished.

        Returns:
            The finished folder.

        Raises:
            PreselError: If the disk is, or becomes, too full to go on; if a file of a result that is reused
                is missing or has another size.
        """
        folder = self.folder(stage)
        if self.has(stage):
            for finished in upstream(stage):
                if self.has(finished):
                    self._reuse(finished)
            return folder
        for source in stage.inputs:
            self.ensure(source)
        try:
            self._check_space()
            with self._lock(stage):
                if self.has(stage):
                    self._reuse(stage)
                else:
                    self._compute(stage, folder)
        except Exception as error:
            if (fault := self.write_fault(error)) is not None:
                raise PreselError(f"{stage.label}: {fault}") from error
            raise
        return folder

    def write_fault(self, error: Exception) -> str | None:
        """Why the store cannot be written to, and the remedy, if an error is about that."""
        if not self._cannot_be_written(error):
            return None
        return (
            f"cannot write to {self.root} ({error}); make room or set paths.store to another disk, then run "
            "the same command again: finished work is kept"
        )

    def _cannot_be_written(self, error: Exception) -> bool:
        """Whether an error is about writing to the store, and not about a file that a stage reads."""
        code, file = getattr(error, "errno", None), getattr(error, "filename", None)
        inside = isinstance(file, str | Path) and Path(file).absolute().is_relative_to(self.root)
        if code in _NOT_WRITABLE:
            return inside
        if code in _DISK_FULL:
            return inside or file is None
        # Not every library raises OSError for a full disk, so that free space is checked too.
        return _free_bytes(self.root) < _FULL_BELOW_BYTES

    def _compute(self, stage: Stage[Any], folder: Path) -> None:
        if self._reporter:
            self._reporter.started(stage.label)
        started = time.time()
        folder.mkdir(parents=True, exist_ok=True)
        returned = stage.compute(self, folder)
        measured = measurements(returned, f"{stage.label}: {type(stage).__qualname__}.compute")
        seconds = time.time() - started
        delete_temporary_files(folder)
        # Files that libraries wrote too, before the manifest declares them complete.
        sync_tree(folder)
        write_manifest(folder, _manifest(stage, seconds, measured))
        self._manifests.pop(folder, None)
        self._verified.add(folder)
        self._report(stage, seconds)

    def _reuse(self, stage: Stage[Any]) -> None:
        folder = self.folder(stage)
        if folder not in self._reported:
            check_result(folder, hashed_bytes=0, manifest=self.manifest(stage))
            self._report(stage, None)

    def _report(self, stage: Stage[Any], seconds: float | None) -> None:
        folder = self.folder(stage)
        if folder not in self._reported:
            self._reported.add(folder)
            if self._reporter:
                self._reporter.finished(stage.label, stage.key, seconds)

    def _lock(self, stage: Stage[Any]) -> AbstractContextManager[Any]:
        path = self.folder(stage).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            return lock.acquire(blocking=False)
        except Timeout:
            if self._reporter:
                self._reporter.waiting(stage.label)
            return lock.acquire()

    def _check_space(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        free_gb = _free_bytes(self.root) / 1e9
        if free_gb < self._min_free_gb:
            raise PreselError(
                f"{self.root}: {free_gb:.1f} GB free on this disk, but paths.min_free_gb asks for "
                f"{self._min_free_gb:g}; make room or set paths.store to another disk"
            )


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _manifest(stage: Stage[Any], seconds: float, measured: dict[str, Any]) -> dict[str, Any]:
    # ru_maxrss counts kilobytes on Linux, bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {
        "stage": stage.name,
        "label": stage.label,
        "version": stage.version,
        "key": stage.key,
        "settings": stage.settings(),
        "inputs": {f"{source.name}/{source.key}": source.label for source in stage.inputs},
        "versions": versions(),
        "git_commit": git_commit(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "wall_seconds": round(seconds, 3),
        "peak_memory_mb": round(peak, 1),
        "processors": os.cpu_count(),
        "measured": measured,
    }
