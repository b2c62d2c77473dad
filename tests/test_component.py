"""What a component's arguments may be."""

from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from presel.component import component


@component
class Several:
    count: Annotated[int, Field(ge=0)] | None = 0
    share: float = 0.0
    either: int | bool = 0
    flag: bool = False
    sizes: list[int] = Field(default_factory=list)
    named: dict[str, bool | int | float | str] = Field(default_factory=dict)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", ["count", "share", "sizes"])
def test_a_boolean_is_no_number(name: str, value: bool) -> None:
    given: Any = {name: [value] if name == "sizes" else value}
    with pytest.raises(ValidationError, match=r"Input should be a valid (integer|number)"):
        Several(**given)


def test_what_may_be_a_boolean_stays_one() -> None:
    named: dict[str, bool | int | float | str] = {"a": True, "b": 1, "c": 1.0, "d": "1"}
    made = Several(either=True, flag=True, named=named, count=None, share=1, sizes=[1])
    assert (made.either, made.flag, made.count, made.share, made.sizes) == (True, True, None, 1.0, [1])
    assert made.either is True
    assert {name: type(value) for name, value in made.named.items()} == {
        "a": bool,
        "b": int,
        "c": float,
        "d": str,
    }
    assert type(Several(either=1).either) is int
