"""Uniform random selection."""

import numpy as np
import pandas as pd

from presel.component import component
from presel.strategies.base import SelectionContext, Strategy


@component
class Random(Strategy):
    """`budget` images, uniformly from the whole pool."""

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Draws from the sorted ids, so that the selection is invariant to the order of the pool's rows."""
        ids = np.sort(context.pool["id"].to_numpy(dtype=str))
        return pd.DataFrame({"id": np.sort(context.rng.choice(ids, context.budget, replace=False))})
