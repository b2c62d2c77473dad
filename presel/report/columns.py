"""The columns of a selection that pages show as numbers."""

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

_NUMBERS = ("cluster", "centrality", "rank", "task_weight")


def with_numbers(selection: pd.DataFrame) -> pd.DataFrame:
    """A run's selection as pages show it, whatever a strategy of the user's own put into these columns.

    Returns:
        The table, in which cluster, centrality, rank and task_weight are finite or missing; without those
        that hold no numbers.
    """
    shown = selection.copy()
    for name in [name for name in _NUMBERS if name in selection]:
        column = shown.pop(name)
        if is_numeric_dtype(column):
            numbers = column.astype(float)
            shown[name] = numbers.where(np.isfinite(numbers))
    return shown
