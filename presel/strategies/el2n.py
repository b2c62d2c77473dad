"""EL2N: the samples with the largest prediction error."""

from typing import ClassVar

import pandas as pd

from presel.component import component
from presel.strategies.base import SelectionContext, Strategy
from presel.strategies.ranking import Slice, ranked_slice


@component
class El2n(Strategy):
    """Error L2-norm (Paul et al., 2021), averaged over the response tokens.

    Attributes:
        slice: Which part of the ranking by descending EL2N is taken.
    """

    needs: ClassVar[tuple[str, ...]] = ("scores",)

    slice: Slice = "top"

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Ranks the whole pool."""
        scores = context.scores
        return ranked_slice(scores["id"], scores["el2n"].to_numpy(), context.budget, self.slice)
