"""A stage as JSON, so that another process can make it again."""

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from presel.storage.stage import Stage


def describe(stage: Stage[Any]) -> list[dict[str, Any]]:
    """Lists a stage and everything it holds, each object once and after those that it holds.

    Stages carry their keys, so that whoever makes them again need not read the sources to find results.

    Raises:
        TypeError: If something it holds is neither a dataclass nor plain data.
    """
    objects: list[dict[str, Any]] = []
    places: dict[int, int] = {}

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            if id(value) not in places:
                kind = type(value)
                objects.append(
                    {
                        "module": kind.__module__,
                        "class": kind.__qualname__,
                        "fields": {
                            field.name: plain(getattr(value, field.name))
                            for field in dataclasses.fields(value)
                        },
                        "key": value.key if isinstance(value, Stage) else None,
                    }
                )
                places[id(value)] = len(objects) - 1
            return {"object": places[id(value)]}
        if isinstance(value, Mapping):
            return {"mapping": {str(name): plain(item) for name, item in value.items()}}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, Path):
            return str(value.absolute())
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{type(value).__qualname__} cannot be handed on; make it a dataclass")

    plain(stage)
    return objects


def rebuild(objects: list[dict[str, Any]]) -> Stage[Any]:
    """Makes the stage of `describe` again."""
    built: list[Any] = []

    def value_of(value: Any) -> Any:
        if isinstance(value, list):
            return [value_of(item) for item in value]
        if isinstance(value, dict):
            if "object" in value:
                return built[value["object"]]
            return {name: value_of(item) for name, item in value["mapping"].items()}
        return value

    for one in objects:
        kind = getattr(import_module(one["module"]), one["class"])
        made = kind(**{name: value_of(value) for name, value in one["fields"].items()})
        if one["key"]:
            # Where the cached property keeps it.
            vars(made)["key"] = one["key"]
        built.append(made)
    stage: Stage[Any] = built[-1]
    return stage
