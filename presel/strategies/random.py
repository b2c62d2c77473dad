"""Uniform random selection."""

import numpy as np
import pandas as pd

from presel.component import component
from presel.strategies.base import Given, Strategy


@component
class Random(Strategy):
    """`budget` images, uniformly from the whole pool."""

    def select(self, given: Given) -> pd.DataFrame:
        """Draws from the sorted ids, so that the order of the pool's rows does not matter."""
        ids = np.sort(given.pool["id"].to_numpy(dtype=str))
        return pd.DataFrame({"id": np.sort(given.random.choice(ids, given.budget, replace=False))})
