"""Stage `swapped_images`: the reference samples, each with the images of another one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from presel.stages.instructions import InstructionsStage, SamplesStage
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class SwappedImagesStage(SamplesStage):
    """Questions and answers of the reference set, each with the images of another sample of its task.

    The other sample has as many images; where there is none, a sample keeps its own.

    Attributes:
        instructions: Those of the reference set; no further ones are bought.
        seed: Seed of the exchange, which does not depend on the order of the pool's rows.
    """

    name: ClassVar[str] = "swapped_images"

    instructions: InstructionsStage
    seed: int

    def compute(self, store: Store, folder: Path) -> dict[str, int]:
        """Puts the samples of each task into random circles, in which each gets the next one's images."""
        records = store.load(self.instructions)
        images = {record.id: record.images for record in records}
        pool = store.load(self.pool)
        bought = pool[pool["id"].isin(list(images))]
        counts = bought["id"].map(lambda name: len(images[name])).rename("count")
        # Another stream than those of the other draws from the reference set.
        generator = np.random.default_rng([self.seed, 3])
        swapped: dict[str, str] = {}
        for _, ids in bought.groupby(["task", counts], sort=True)["id"]:
            circle = generator.permutation(np.sort(ids.to_numpy(dtype=str)))
            swapped |= dict(zip(circle.tolist(), np.roll(circle, -1).tolist(), strict=True))
        self.write(folder, [replace(record, images=images[swapped[record.id]]) for record in records])
        return {"samples": len(records)}
