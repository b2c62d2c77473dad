"""Stages: steps of the method whose results are addressed by what decides them."""

import dataclasses
import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Set
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from presel.storage.files import sha256

if TYPE_CHECKING:
    from presel.storage.store import Store


# Covariant: stages only return results.
T_co = TypeVar("T_co", covariant=True)


# Code that keys need not read: ours says itself when it gives other results.
_VERSIONED = {"presel", *sys.stdlib_module_names}


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
            "name": kind.__qualname__,
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[T_co]):
    """One step of the method.

    Subclasses are frozen dataclasses with keyword arguments. Their fields decide the result, except those
    declared with `compare=False`, which say how it is computed.

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
        """What decides the result besides name and version: the fields. A stage may add to them."""
        return fields_identity(self)

    @property
    def inputs(self) -> tuple["Stage[Any]", ...]:
        """The stages this one reads."""
        return tuple(_stages_in([getattr(self, field.name) for field in dataclasses.fields(self)]))

    @cached_property
    def key(self) -> str:
        """Hash of the stage's name, its class and version, its settings and the keys of its inputs."""
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
