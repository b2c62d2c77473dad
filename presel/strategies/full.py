"""No selection: the 100 % row."""

from typing import ClassVar

import pandas as pd

from presel.component import component
from presel.strategies.base import SelectionContext, Strategy


@component
class Full(Strategy):
    """Every image of the pool; the budget does not count."""

    whole_pool: ClassVar[bool] = True

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes all."""
        return context.pool[["id"]]
