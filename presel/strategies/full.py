"""No selection: the 100 % row."""

from typing import ClassVar

import pandas as pd

from presel.component import component
from presel.strategies.base import Given, Strategy


@component
class Full(Strategy):
    """Every image of the pool; the budget does not count."""

    whole_pool: ClassVar[bool] = True

    def select(self, given: Given) -> pd.DataFrame:
        """Takes all."""
        return given.pool[["id"]]
