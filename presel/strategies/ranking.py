"""Selection by one score per image, as several baselines do."""

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

Slice: TypeAlias = Literal["top", "middle", "bottom"]


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
