"""No selection: the 100 % row."""

from typing import ClassVar

import pandas as pd
from pydantic.dataclasses import dataclass as component

from presel.component import STRICT
from presel.strategies.base import Given, Strategy


@component(frozen=True, kw_only=True, config=STRICT)
class Full(Strategy):
    """Every image of the pool; the budget does not count."""

    whole_pool: ClassVar[bool] = True

    def select(self, given: Given) -> pd.DataFrame:
        """Takes all."""
        return given.pool[["id"]]
