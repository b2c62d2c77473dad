"""No selection: the 100 % row of a table."""

from typing import ClassVar

import pandas as pd

from presel.component import component
from presel.strategies.base import SelectionContext, Strategy


@component
class Full(Strategy):
    """Every image of the pool, whatever the budget."""

    whole_pool: ClassVar[bool] = True

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Selects all images."""
        return context.pool[["id"]]
