"""Stages: steps of the method whose results are stored under a key of everything that decides them.

A key is a hash of the stage's name, class and fields, each reduced to JSON by `identity`:

- A stage counts by its key, so that a key holds those of all stages before it.
- A component counts by its class and its fields, except those with `compare=False` and, of a strategy,
  its `unused_settings`. One that reads files defines a method `identity`, which adds digests of them.
- A class of this package counts by its name and `version`, which is raised when its code gives other
  results; a class from elsewhere also by the text of its module and of those of its folder that this imports.
"""

import dataclasses
import hashlib
import inspect
import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from presel.errors import PreselError
from presel.storage.own_code import is_versioned, module_digests

if TYPE_CHECKING:
    from presel.storage.store import Store


# Covariant: stages only return results.
T_co = TypeVar("T_co", covariant=True)


# What `key_of` gives, and so the name of a result's folder.
KEY = re.compile("[0-9a-f]{16}")


def key_of(text: str) -> str:
    """The key of what a text describes: the beginning of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(value: Any) -> Any:
    """Reduces a stage, a component or a plain value to what decides its result, as JSON-ready data."""
    if isinstance(value, Stage):
        return {"stage": value.name, "key": value.key}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = value.identity() if hasattr(value, "identity") else fields_identity(value)
        return {**fields, "class": _class_identity(type(value))}
    if isinstance(value, Mapping):
        return {str(key): identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise PreselError(
        f"a field holds a {type(value).__qualname__}, which cannot be part of a stage's key; make it text, a "
        "number, a component or a stage, or declare it with field(compare=False) if it decides no result"
    )


def fields_identity(value: Any) -> dict[str, Any]:
    """The identities of a dataclass's fields, without those with `compare=False` and the `unused_settings`.

    A component that reads a file returns `fields_identity(self) | {"path": sha256(self.path)}`.
    """
    counted = {field.name for field in dataclasses.fields(value) if field.compare}
    read = counted - getattr(value, "unused_settings", frozenset())
    return {name: identity(getattr(value, name)) for name in sorted(read)}


def _class_identity(kind: type) -> dict[str, Any]:
    source: dict[str, str] = {}
    for base in kind.__mro__:
        if not is_versioned(base.__module__):
            source |= _source(base)
    return {
        "name": kind.__qualname__,
        "version": getattr(kind, "version", 1),
        "source": source,
    }


def _source(kind: type) -> dict[str, str]:
    """Digests of what a class from outside is made of, by the names of modules."""
    file = getattr(sys.modules[kind.__module__], "__file__", None)
    if file:
        return module_digests(kind.__module__, Path(file))
    try:  # a class that was defined in a notebook
        return {kind.__module__: hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()}
    except (OSError, TypeError) as error:
        raise PreselError(
            f"class {kind.__qualname__} was defined in no file, so that a change of it would go unnoticed; "
            "put it into a module"
        ) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[T_co]):
    """One step of the method.

    Subclasses are frozen dataclasses with keyword arguments. Their fields decide the result, except those
    with `compare=False`, which say how it is computed. A field that is a stage, or a collection of stages, is
    an input.

    Attributes:
        name: The stage's name, and its folder in the store.
        version: Raised when the stage's code gives other results.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    def label(self) -> str:
        """What the terminal calls this stage."""
        return self.name

    def check(self, store: "Store") -> None:
        """Checks settings, models and programs before any stage of a run is computed.

        Called for every stage of a run, also where its result is in the store already.

        Raises:
            PreselError: If something is wrong.
        """

    def check_data(self, store: "Store") -> None:
        """Checks the pool and the benchmarks, which may be read for it, before any long computation.

        Called for every stage of a run, inputs first, once all of them passed `check`.

        Raises:
            PreselError: If something is wrong.
        """

    @abstractmethod
    def compute(self, store: "Store", folder: Path) -> dict[str, Any] | None:
        """Writes the stage's files into `folder`, resuming from what an interrupted run left there.

        Returns:
            Measurements for the manifest, if there are any.
        """

    @abstractmethod
    def load(self, folder: Path) -> T_co:
        """Reads the result from the stage's finished folder."""

    def settings(self) -> dict[str, Any]:
        """What decides the result besides name and class: the fields. A stage may add to them."""
        return fields_identity(self)

    @property
    def inputs(self) -> tuple["Stage[Any]", ...]:
        """The stages this one reads."""
        return tuple(_stages_in([getattr(self, field.name) for field in dataclasses.fields(self)]))

    @cached_property
    def key(self) -> str:
        """Hash of the stage's name, its class and version, its settings and the keys of its inputs."""
        text = json.dumps([self.name, _class_identity(type(self)), self.settings()], sort_keys=True)
        return key_of(text)


def _stages_in(value: Any) -> Iterator[Stage[Any]]:
    if isinstance(value, Stage):
        yield value
    elif isinstance(value, Mapping):
        yield from _stages_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _stages_in(item)


def upstream(*stages: Stage[Any]) -> list[Stage[Any]]:
    """The stages and everything that they depend on, inputs first, each once; no key is computed."""
    found: list[Stage[Any]] = []

    def visit(stage: Stage[Any]) -> None:
        if stage not in found:
            for source in stage.inputs:
                visit(source)
            found.append(stage)

    for stage in stages:
        visit(stage)
    return found
