"""Self-Filter: difficult samples by a jointly trained score net, diversified by CLIP features."""

from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.selection import FeatureRows
from presel.selection.arrays import FloatVector, IntVector, round_for_ties
from presel.strategies.base import SelectionContext, Strategy

# Number of images whose neighbors are computed at once: their cosines to 600,000 images take 1.2 GB.
_AHEAD = 256
# Neighbors kept beyond k, to replace those that are picked in the meantime.
_SPARE = 64


@component
class SelfFilter(Strategy):
    """Self-Filter (Chen et al., 2024): difficulty is the score of `SelfFilterStage`, negated.

    As in its authors' code, neighbors are nearest in CLIP's embeddings of image and text (`clip_features`).

    Attributes:
        k: Number of nearest samples whose difficulty decreases when a sample is picked.
        gamma: Factor of the decrease, see `pick_difficult`.
    """

    name: ClassVar[str] = "self_filter"
    needs: ClassVar[tuple[str, ...]] = ("self_filter", "clip_features")

    k: Annotated[int, Field(ge=1)] = 10
    gamma: Annotated[float, Field(ge=0)] = 1.0

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Spends the budget, or chooses all samples that were answered if these are fewer.

        Returns:
            Table of the chosen images: id, initial difficulty, rank (from 1 in the order of picking).
        """
        ids, rows = context.clip_features.by_id(normalize=True)
        difficulty = -context.self_filter.set_index("id")["score"].loc[ids.tolist()].to_numpy()
        picks = pick_difficult(rows, difficulty, min(context.budget, len(ids)), self.k, self.gamma)
        return pd.DataFrame(
            {"id": ids[picks], "difficulty": difficulty[picks], "rank": np.arange(1, len(picks) + 1)}
        )


def pick_difficult(
    rows: FeatureRows, difficulty: FloatVector, budget: int, k: int = 10, gamma: float = 1.0
) -> IntVector:
    """Repeatedly picks the most difficult image and decreases the difficulty of the images nearest to it.

    A pick of difficulty d lowers that of the k nearest images not picked yet, at cosine c, by d · c² · gamma,
    as in the authors' code. Where d is negative, this raises it.

    Args:
        rows: L2-normalized features, (n, d).
        difficulty: Shape (n,).
        budget: Images to pick, at most n.
        k: Number of neighbors; all remaining images if there are fewer.
        gamma: Factor of d · c².

    Returns:
        Rows in the order of picking, shape (budget,). Difficulties and cosines are compared rounded to nine
        decimals; of equal ones the first row counts.
    """
    neighbors = _Neighbors(rows, k)
    left = round_for_ties(difficulty)
    picks = np.empty(budget, dtype=np.int64)
    for place in range(budget):
        pick = int(left.argmax())
        picks[place], reached, left[pick] = pick, left[pick], -np.inf
        nearest, cosines = neighbors.of(pick, left)
        left[nearest] = round_for_ties(left[nearest] - gamma * reached * cosines**2)
    return picks


class _Neighbors:
    """Nearest neighbors of successive picks.

    Neighbors of many images that may be picked soon are computed by one matrix product, which takes a
    fraction of the time of as many matrix-vector products.
    """

    def __init__(self, rows: FeatureRows, k: int) -> None:
        self._rows = rows.for_many_passes()
        self._k = k
        self._known: dict[int, tuple[IntVector, FloatVector]] = {}

    def of(self, pick: int, left: FloatVector) -> tuple[IntVector, FloatVector]:
        """Rows and cosines of the k nearest images not picked yet, nearest first; all if there are fewer.

        `left` holds the difficulties, (n,), with -inf for picked images, this one included.
        """
        if pick not in self._known:
            self._look_up(pick, left)
        nearest, cosines = self._known.pop(pick)
        free = np.flatnonzero(left[nearest] > -np.inf)[: self._k]
        if len(free) < min(self._k, int((left > -np.inf).sum())):
            return self.of(pick, left)
        return nearest[free], cosines[free]

    def _look_up(self, pick: int, left: FloatVector) -> None:
        """Computes the neighbors of the pick, and of the most difficult images without known neighbors."""
        waiting = left.copy()
        waiting[list(self._known)] = -np.inf
        waiting[pick] = np.inf
        ahead = np.argsort(-waiting, kind="stable")[:_AHEAD]
        ahead = ahead[waiting[ahead] > -np.inf]
        own = self._rows.take(ahead).astype(np.float64)
        cosines = np.empty((len(ahead), len(left)))
        for place, block in self._rows.blocks():
            cosines[:, place] = round_for_ties(own @ block.astype(np.float64).T)
        cosines[:, left == -np.inf] = -np.inf
        kept = min(self._k + _SPARE, len(left))
        for row, values in zip(ahead.tolist(), cosines, strict=True):
            among = np.flatnonzero(values >= np.partition(values, -kept)[-kept])
            nearest = among[np.argsort(-values[among], kind="stable")][:kept]
            self._known[row] = nearest, values[nearest]
