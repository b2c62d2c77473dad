"""Stage `swapped_images`: the reference samples, each with the image of another one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from presel.stages.instructions import InstructionsStage, SamplesStage
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class SwappedImagesStage(SamplesStage):
    """Questions and answers of the reference set, each with the image of another sample of its task.

    The only sample of a task keeps its image.

    Attributes:
        instructions: Those of the reference set; no further ones are bought.
        seed: Seed of the exchange, which does not depend on the order of the pool's rows.
    """

    name: ClassVar[str] = "swapped_images"

    instructions: InstructionsStage
    seed: int

    def compute(self, store: Store, folder: Path) -> dict[str, int]:
        """Puts the samples of each task into a random circle, in which each gets the next one's image."""
        records = store.load(self.instructions)
        images = {record.id: record.image for record in records}
        pool = store.load(self.pool)
        # Another stream than those of the other draws from the reference set.
        generator = np.random.default_rng([self.seed, 3])
        swapped: dict[str, str] = {}
        for _, ids in pool[pool["id"].isin(list(images))].groupby("task", sort=True)["id"]:
            circle = generator.permutation(np.sort(ids.to_numpy(dtype=str)))
            swapped |= dict(zip(circle.tolist(), np.roll(circle, -1).tolist(), strict=True))
        self.write(folder, [replace(record, image=images[swapped[record.id]]) for record in records])
        return {"samples": len(records)}
