"""The decorator of every configurable part: a dataclass whose arguments are checked."""

from dataclasses import field
from typing import TypeVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def component(kind: type[T]) -> type[T]:
    """Makes a class a frozen dataclass with keyword arguments, which pydantic checks.

    An unknown argument, or one of the wrong type, raises a ValidationError when the component is made, at the
    start of a run and before any work.

    Args:
        kind: The class, with annotated fields.

    Returns:
        The dataclass.
    """
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return dataclass(frozen=True, kw_only=True, config=config)(kind)  # type: ignore[return-value]
