"""A check that several parts of the selection share."""

import math


def check_whole(value: float, name: str, least: int = 1) -> None:
    """Refuses what is not a whole number of at least `least`.

    Raises:
        ValueError: Naming the value by `name`.
    """
    if isinstance(value, bool) or not (math.isfinite(value) and value == int(value) and value >= least):
        raise ValueError(f"{name} is {value}; it must be a whole number of at least {least}")
