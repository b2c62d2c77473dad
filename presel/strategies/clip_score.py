"""CLIP score: the samples whose text matches their image best."""

from typing import ClassVar

import pandas as pd

from presel.component import component
from presel.strategies.base import SelectionContext, Strategy
from presel.strategies.ranking import ranked_slice


@component
class ClipScore(Strategy):
    """CLIP score (Hessel et al., 2021): cosine similarity of the embeddings of image and conversation."""

    name: ClassVar[str] = "clip_score"
    needs: ClassVar[tuple[str, ...]] = ("clip_scores",)

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes the highest scores of the whole pool."""
        scores = context.clip_scores
        return ranked_slice(scores["id"], scores["clip_score"].to_numpy(), context.budget)
