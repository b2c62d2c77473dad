"""Stage `map`: every image's place on a map on which similar images lie near each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from presel.selection import FeatureRows
from presel.selection.feature_rows import Features
from presel.selection.layout import layout
from presel.stages.results import TableStage
from presel.storage.stage import Stage
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class MapStage(TableStage):
    """A two-dimensional layout of the pool's features, see `presel.selection.layout`.

    Leaves `map.parquet`: id, x, y (from 0 to 1), in the order of the pool.

    Attributes:
        features: The images' features; L2-normalized here.
    """

    name: ClassVar[str] = "map"

    features: Stage[Features]

    def compute(self, store: Store, folder: Path) -> None:
        """Lays the images out."""
        ids, array = store.load(self.features)
        places = layout(FeatureRows(array, normalize=True, ids=ids.tolist()))  # (n, 2)
        self.write(folder, pd.DataFrame({"id": ids, "x": places[:, 0], "y": places[:, 1]}))
