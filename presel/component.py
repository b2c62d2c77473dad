"""The decorator of every configurable part: a dataclass whose arguments are checked."""

from dataclasses import field
from functools import partial
from inspect import get_annotations
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticKnownError

T = TypeVar("T")

# NumPy's and scikit-learn's seeds have 32 bits.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def component(kind: type[T]) -> type[T]:
    """Makes a class a frozen dataclass with keyword arguments, which pydantic checks.

    An unknown argument, or one of the wrong type, raises a ValidationError when the component is made, at the
    start of a run and before any work. A boolean is no number: only a field of type bool takes it.

    Args:
        kind: The class, with annotated fields.

    Returns:
        The dataclass.
    """
    kind.__annotations__ = {name: _numeric(one) for name, one in get_annotations(kind).items()}
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return dataclass(frozen=True, kw_only=True, config=config)(kind)  # type: ignore[return-value]


def _not_boolean(refusal: Literal["int_type", "float_type"], value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError(refusal)
    return value


# pydantic takes true for 1, unless it is strict, when it takes no text for a path either.
# PyTorch and NumPy take whole numbers of 64 bits.
_NUMBERS: dict[object, Any] = {
    int: Annotated[int, BeforeValidator(partial(_not_boolean, "int_type")), Field(le=2**63 - 1)],
    float: Annotated[float, BeforeValidator(partial(_not_boolean, "float_type"))],
}


def _numeric(annotation: Any) -> Any:
    """An annotation whose ints and floats, also in unions, lists and mappings, take no boolean."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in (int, float):
        return _NUMBERS[annotation]
    if origin is Annotated:
        return Annotated[(_numeric(parts[0]), *parts[1:])]
    if origin in (Union, UnionType):
        return Union[tuple(map(_numeric, parts))]  # noqa: UP007
    if origin in (list, tuple, dict):
        return origin[tuple(map(_numeric, parts))]
    return annotation
