"""Baselines that score each sample on its own and take a slice of the ranking."""

from typing import ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from presel.component import component
from presel.importance import relevance_scores
from presel.strategies.base import SelectionContext, Strategy

Slice: TypeAlias = Literal["top", "middle", "bottom"]


@component
class ClipScore(Strategy):
    """CLIP score (Hessel et al., 2021): cosine similarity of the embeddings of image and conversation."""

    name: ClassVar[str] = "clip_score"
    needs: ClassVar[tuple[str, ...]] = ("clip_scores",)

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes the samples whose text matches their image best."""
        scores = context.clip_scores
        return ranked_slice(scores["id"], scores["clip_score"].to_numpy(), context.budget)


@component
class El2n(Strategy):
    """Error L2-norm (Paul et al., 2021), averaged over the response tokens.

    Attributes:
        slice: Part of the ranking by descending EL2N that is taken: top, middle or bottom.
    """

    needs: ClassVar[tuple[str, ...]] = ("scores",)

    slice: Slice = "top"

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes a slice of the whole pool; the top has the largest prediction errors."""
        scores = context.scores
        return ranked_slice(scores["id"], scores["el2n"].to_numpy(), context.budget, self.slice)


@component
class Ifd(Strategy):
    """Instruction-following difficulty (Li et al., 2024), which is the IRS of a single sample.

    Samples above 1, whose question is harmful, are dropped, and so are those whose difficulty is undefined
    (`relevance_scores`); fewer than the budget may be left. Losses include the token that ends the answer,
    and that without the question keeps image and template; the authors' do not include that token, and keep
    only the heading of the response.
    """

    needs: ClassVar[tuple[str, ...]] = ("scores",)

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes the samples whose question helps the answer least, but still helps."""
        scores = context.scores
        difficulty = relevance_scores(scores["loss_with_question"], scores["loss_without_question"])
        kept = difficulty <= 1
        return ranked_slice(scores["id"][kept], difficulty[kept], context.budget)


@component
class Perplexity(Strategy):
    """Perplexity of the response, exp of its mean token loss (Marion et al., 2023).

    Attributes:
        slice: Part of the ranking by descending perplexity that is taken: top, middle or bottom.
    """

    needs: ClassVar[tuple[str, ...]] = ("scores",)

    slice: Slice = "top"

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes a slice of the whole pool; the top has the least likely answers."""
        scores = context.scores
        perplexity = np.exp(scores["loss_with_question"].to_numpy())
        return ranked_slice(scores["id"], perplexity, context.budget, self.slice)


def ranked_slice(
    ids: pd.Series, scores: npt.NDArray[np.float64], budget: int, part: Slice = "top"
) -> pd.DataFrame:
    """Takes consecutive images of the ranking by descending score; equal scores go by id.

    Args:
        ids: Ids of n images.
        scores: Their scores, shape (n,).
        budget: Number of images to take; all if there are fewer.
        part: The highest scores, the lowest, or those in the middle (as many left out above as below; one
            more below if the number is odd).

    Returns:
        Table of the chosen images: id, score.
    """
    ranking = pd.DataFrame({"id": ids.to_numpy(), "score": scores})
    ranking = ranking.sort_values(["score", "id"], ascending=[False, True], ignore_index=True)
    left_out = max(len(ranking) - budget, 0)
    start = {"top": 0, "middle": left_out // 2, "bottom": left_out}[part]
    return ranking[start : start + budget]
