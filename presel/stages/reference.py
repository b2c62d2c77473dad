"""Stage `reference`: the random share of each task whose instructions are bought first."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from presel.errors import PreselError
from presel.stages.pool import Pool
from presel.stages.results import TableStage
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ReferenceStage(TableStage):
    """D_ref: uniform random `share` of each task, at least one image of each (paper, section 3.1).

    Leaves `reference.parquet`: id.

    Attributes:
        pool: The pool to draw from.
        share: Share of each task, 0 to 1.
        seed: Seed of the draw, which does not depend on the order of the pool's rows.
    """

    name: ClassVar[str] = "reference"

    pool: Pool
    share: float
    seed: int

    def compute(self, store: Store, folder: Path) -> dict[str, int]:
        """Draws the reference set.

        Raises:
            PreselError: If a task has a single image, too few for a reference set and a selection.
        """
        generator = np.random.default_rng(self.seed)
        chosen: list[str] = []
        for task, ids in store.load(self.pool).groupby("task", sort=True)["id"]:
            if len(ids) == 1:
                raise PreselError(
                    f"task '{task}' has a single usable image ('{ids.iloc[0]}'), too few to take a reference "
                    "set and to select from; merge it into another task, remove its record, or lower "
                    "tasks.n_tasks where tasks are discovered"
                )
            size = reference_size(self.share, len(ids))
            chosen += sorted(generator.choice(np.sort(ids.to_numpy(dtype=str)), size, replace=False))
        self.write(folder, pd.DataFrame({"id": chosen}))
        return {"images": len(chosen)}


def reference_size(share: float, images: int) -> int:
    """Number of reference images that a task of `images` images gets."""
    return max(1, round(share * images))
