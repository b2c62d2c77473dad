"""Content-addressed results: every stage computed once, found again by a key, safe to interrupt."""

import dataclasses
import errno
import hashlib
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from filelock import FileLock, Timeout

from presel.errors import PreselError
from presel.files import sha256, sync_tree, temporary_files
from presel.integrity import MANIFEST, check_result, read_manifest, write_manifest

# A stage only ever hands results out.
T_co = TypeVar("T_co", covariant=True)

_REPORTED_PACKAGES = [
    "presel",
    "torch",
    "transformers",
    "peft",
    "pytorch-lightning",
    "numpy",
    "scikit-learn",
    "faiss-cpu",
    "pandas",
    "pillow",
]

# Code that keys need not read: ours says itself when it gives other results.
_VERSIONED = {"presel", *sys.stdlib_module_names}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL_BELOW_BYTES = 1_000_000


def identity(value: Any) -> Any:
    """Reduces a stage, a component or a plain value to what decides its result, as JSON-ready data.

    A stage stands for its key. A dataclass stands for its class and its fields, except the fields
    declared with `compare=False`: those say how a result is computed, not what it is. An object with an
    `identity()` method stands for its class and what that method says. A class from outside this package
    counts with the text of its module, and with the fields that it adds to a class of this package.
    """
    if isinstance(value, Stage):
        return {"stage": value.name, "key": value.key}
    if hasattr(value, "identity"):
        return _added_fields(value) | value.identity() | _code(type(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_identity(value) | _code(type(value))
    if isinstance(value, Mapping):
        return {str(key): identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__qualname__} cannot be part of a stage's key")


def _code(kind: type) -> dict[str, Any]:
    """What a class does: its name and version, and the text of whatever modules outside this package.

    No field can be named like the entry, a word of the language.
    """
    modules = {base.__module__ for base in kind.__mro__}
    files = {
        name: getattr(sys.modules[name], "__file__", None)
        for name in modules
        if name.partition(".")[0] not in _VERSIONED
    }
    return {
        "class": {
            "name": f"{kind.__module__}.{kind.__qualname__}",
            "version": getattr(kind, "version", 1),
            "source": {name: sha256(Path(file)) for name, file in files.items() if file},
        }
    }


def _added_fields(value: Any) -> dict[str, Any]:
    """The fields that a user's class adds to one of ours, which an inherited `identity()` does not know."""
    ours = next((kind for kind in type(value).__mro__ if kind.__module__.startswith("presel.")), None)
    if not dataclasses.is_dataclass(ours):
        return {}
    return fields_identity(value, known={field.name for field in dataclasses.fields(ours)})


def fields_identity(value: Any, known: Set[str] = frozenset()) -> dict[str, Any]:
    """The identity of a dataclass's fields, without those in `known` and those with `compare=False`."""
    return {
        field.name: identity(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if field.compare and field.name not in known
    }


class Stage(ABC, Generic[T_co]):
    """One step of the method. Subclasses are frozen dataclasses: their fields are all they depend on.

    Attributes:
        name: The step's name, and its folder in the store.
        version: Raised when the step's code comes to give other results.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    def label(self) -> str:
        """What the stage line calls this step."""
        return self.name

    @abstractmethod
    def compute(self, store: "Store", folder: Path) -> dict[str, Any] | None:
        """Writes the step's files into `folder`, going on from what an interrupted run left there.

        Returns:
            Measurements worth keeping in the manifest, if there are any.
        """

    @abstractmethod
    def load(self, folder: Path) -> T_co:
        """Reads the step's result back from its finished folder."""

    def settings(self) -> dict[str, Any]:
        """What decides the result beside name and version: the fields. A stage may add to them."""
        return fields_identity(self)

    @property
    def inputs(self) -> tuple["Stage[Any]", ...]:
        """The stages this one reads."""
        return tuple(_stages_in([getattr(self, field.name) for field in dataclasses.fields(self)]))  # type: ignore[arg-type]

    @cached_property
    def key(self) -> str:
        """Hash of the stage's name, class with its version, own settings and inputs' keys."""
        text = json.dumps([self.name, _code(type(self)), self.settings()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stages_in(value: Any) -> Iterator[Stage[Any]]:
    if isinstance(value, Stage):
        yield value
    elif isinstance(value, Mapping):
        yield from _stages_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _stages_in(item)


def upstream(stage: Stage[Any]) -> list[Stage[Any]]:
    """The stage and everything it rests on, inputs first, each once."""
    found: dict[str, Stage[Any]] = {}

    def visit(step: Stage[Any]) -> None:
        if f"{step.name}/{step.key}" not in found:
            for source in step.inputs:
                visit(source)
            found[f"{step.name}/{step.key}"] = step

    visit(stage)
    return list(found.values())


class Reporter(Protocol):
    """Whoever tells the user what becomes of each stage."""

    def started(self, label: str) -> None:
        """A stage begins to compute."""

    def waiting(self, label: str) -> None:
        """Another process computes this stage; we wait for it."""

    def finished(self, label: str, key: str, seconds: float | None) -> None:
        """A stage's result is at hand; `seconds` is None where it was reused."""


class Store:
    """The folder `<root>/<stage>/<key>/` of every result; one without a manifest is unfinished."""

    def __init__(self, root: Path, reporter: Reporter, min_free_gb: float = 0.0) -> None:
        """Opens a store.

        Args:
            root: Its folder, made if missing.
            reporter: Told of every stage.
            min_free_gb: Refuse to compute anything with less free disk space than this, in GB.
        """
        self.root = root.absolute()
        self._reporter = reporter
        self._min_free_gb = min_free_gb
        self._reported: set[Path] = set()
        self._verified: set[Path] = set()
        # With a million images, a manifest takes seconds to read.
        self._manifests: dict[Path, dict[str, Any]] = {}

    def folder(self, stage: Stage[Any]) -> Path:
        """Where the stage's result lies, or would."""
        return self.root / stage.name / stage.key

    def has(self, stage: Stage[Any]) -> bool:
        """Whether the stage's result is finished."""
        return (self.folder(stage) / MANIFEST).exists()

    def load(self, stage: Stage[T_co]) -> T_co:
        """The stage's result, computed now if need be.

        Raises:
            PreselError: As `verified` does.
        """
        folder = self.verified(stage)
        try:
            return stage.load(folder)
        except Exception:
            # A result that is too large to be hashed at every run may be what the error comes from.
            check_result(folder, math.inf)
            raise

    def verified(self, stage: Stage[Any]) -> Path:
        """The stage's finished folder, computed now if need be, whose files are about to be read.

        Raises:
            PreselError: As `ensure` does; if the result is damaged, with the digests looked at.
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
        """Computes the stage, and first whatever it reads, unless its result is there already.

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
            if self._cannot_be_written(error):
                raise PreselError(
                    f"{stage.label}: cannot write to {self.root} ({error}); make room or set paths.store to "
                    "another disk, then run the same command again: finished work is kept"
                ) from error
            raise
        return folder

    def _cannot_be_written(self, error: Exception) -> bool:
        """Whether an error comes from this store's disk, and not from a file that a stage reads."""
        code, file = getattr(error, "errno", None), getattr(error, "filename", None)
        inside = isinstance(file, str | Path) and Path(file).absolute().is_relative_to(self.root)
        if code in _NOT_WRITABLE:
            return inside
        if code in _DISK_FULL:
            return inside or file is None
        # Not every library raises OSError for a full disk, so the disk itself is asked too.
        return _free_bytes(self.root) < _FULL_BELOW_BYTES

    def _compute(self, stage: Stage[Any], folder: Path) -> None:
        self._reporter.started(stage.label)
        started = time.time()
        folder.mkdir(parents=True, exist_ok=True)
        measured = stage.compute(self, folder) or {}
        seconds = time.time() - started
        for left_over in temporary_files(folder):
            left_over.unlink()
        # Before there is a manifest that promises it, also what libraries wrote.
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
            self._reporter.finished(stage.label, stage.key, seconds)

    @contextmanager
    def _lock(self, stage: Stage[Any]) -> Iterator[None]:
        path = self.folder(stage).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            self._reporter.waiting(stage.label)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

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


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results may depend on."""
    found = {"python": platform.python_version()}
    for package in _REPORTED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """The commit this code was run from, or None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None


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
