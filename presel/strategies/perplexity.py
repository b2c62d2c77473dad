"""Perplexity: the samples whose answers are the least likely under the model."""

from typing import ClassVar

import numpy as np
import pandas as pd

from presel.component import component
from presel.strategies.base import SelectionContext, Strategy
from presel.strategies.ranking import Slice, ranked_slice


@component
class Perplexity(Strategy):
    """Perplexity of the response, exp of its mean token loss (Marion et al., 2023).

    Attributes:
        slice: Which part of the ranking by descending perplexity is taken.
    """

    needs: ClassVar[tuple[str, ...]] = ("scores",)

    slice: Slice = "top"

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Ranks the whole pool."""
        scores = context.scores
        perplexity = np.exp(scores["loss_with_question"].to_numpy())
        return ranked_slice(scores["id"], perplexity, context.budget, self.slice)
