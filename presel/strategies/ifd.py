"""IFD: the samples whose question helps the answer least, but still helps."""

from typing import ClassVar

import pandas as pd

from presel.component import component
from presel.importance import relevance_scores
from presel.strategies.base import SelectionContext, Strategy
from presel.strategies.ranking import ranked_slice


@component
class Ifd(Strategy):
    """Instruction-following difficulty (Li et al., 2024), which is the IRS of a single sample.

    Samples above 1, whose question is harmful, are dropped, and so are those whose difficulty is undefined
    (`relevance_scores`); fewer than the budget may be left.
    """

    needs: ClassVar[tuple[str, ...]] = ("scores",)

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes the highest scores that are not above 1."""
        scores = context.scores
        difficulty = relevance_scores(scores["loss_with_question"], scores["loss_without_question"])
        kept = difficulty <= 1
        return ranked_slice(scores["id"][kept], difficulty[kept], context.budget)
