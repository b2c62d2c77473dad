"""Stage `question_features`: one vector for the first question of every sample of the pool."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from presel.data.prompts import IMAGE_TOKEN
from presel.models.lvlm import Lvlm
from presel.stages.features import VectorsStage
from presel.stages.instructions import InstructionsStage
from presel.storage.shards import SHARD_SIZE, ArrayShards, Batches, chunks
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class QuestionFeaturesStage(VectorsStage):
    """The mean token embedding of each sample's first question, `features.npy` and `ids.parquet`.

    Attributes:
        lvlm: The model whose token embeddings are averaged.
        instructions: Those of the whole pool.
    """

    name: ClassVar[str] = "question_features"

    lvlm: Lvlm
    instructions: InstructionsStage

    def check(self, store: Store) -> None:
        """Checks devices and model."""
        super().check(store)
        self.lvlm.check()

    def shards(self, store: Store, folder: Path) -> ArrayShards[str]:
        """The first questions, without the image token."""
        from presel.models.token_embeddings import TokenEmbeddings

        def embed(batches: Batches[str]) -> Iterator[NDArray[np.float16]]:
            embeddings = TokenEmbeddings(self.lvlm)
            yield from map(embeddings.means, batches)

        records = store.load(self.instructions)
        return ArrayShards(
            folder=folder / "shards",
            items=[one.conversations[0]["value"].replace(IMAGE_TOKEN, "").strip() for one in records],
            label="embedding questions",
            to_batches=lambda shard: list(chunks(shard, SHARD_SIZE)),
            compute_batches=embed,
        )

    def join(self, store: Store, folder: Path, shards: ArrayShards[str]) -> dict[str, Any]:
        """Joins the shards into one file."""
        ids = self.instructions.ids(store)
        dimensions = self.write(folder, ids, shards.files, np.arange(len(ids)))
        return {"samples": len(ids), "dimensions": dimensions}
