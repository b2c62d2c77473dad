"""Stages `clip_scores` and `clip_features`: CLIP embeddings of every sample's image and text."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from presel.data.llava import Record
from presel.distributed.stage import ShardedStage
from presel.models.clip import Clip
from presel.selection.feature_rows import Features
from presel.stages.features import VectorsStage
from presel.stages.instructions import InstructionsStage
from presel.stages.results import TableStage
from presel.storage.shards import ArrayShards, Batches, TableShards, chunks
from presel.storage.stage import T_co
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ClipStage(ShardedStage[T_co]):
    """Base of both stages.

    Attributes:
        instructions: The samples.
        clip: The model.
    """

    instructions: InstructionsStage
    clip: Clip

    def check(self, store: Store) -> None:
        """Checks the model."""
        self.clip.check()

    def embedded(
        self, store: Store, batches: Batches[Record]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Embeddings of the images and of the texts of each batch, (n, d) each."""
        from presel.models.conversations import Example

        images = self.instructions.pool.files(store).images
        examples = [[Example(images / one.image, one.conversations) for one in batch] for batch in batches]
        return self.clip.embed(examples, self.runtime.workers, self.runtime.hardware.accelerator)


@dataclass(frozen=True, kw_only=True)
class ClipScoresStage(TableStage, ClipStage[pd.DataFrame]):
    """Cosine similarity of image and text embedding of every sample.

    Leaves `clip_scores.parquet`: id, clip_score (-1 to 1).
    """

    name: ClassVar[str] = "clip_scores"

    def shards(self, store: Store, folder: Path) -> TableShards[Record]:
        """The samples."""

        def score(batches: Batches[Record]) -> Iterator[pd.DataFrame]:
            for batch, (images, texts) in zip(batches, self.embedded(store, batches), strict=True):
                cosines = np.einsum("ij,ij->i", images, texts)  # (n, d), (n, d) -> (n,)
                yield pd.DataFrame({"id": [record.id for record in batch], "clip_score": cosines})

        return TableShards(
            folder=folder / "shards",
            items=store.load(self.instructions),
            label="scoring samples",
            to_batches=lambda shard: list(chunks(shard, self.clip.batch_size)),
            compute_batches=score,
        )

    def join(self, store: Store, folder: Path, shards: TableShards[Record]) -> dict[str, Any]:
        """Joins the shards into one table."""
        table = shards.joined()
        self.write(folder, table)
        return {"samples": len(table)}


@dataclass(frozen=True, kw_only=True)
class ClipFeaturesStage(VectorsStage, ClipStage[Features]):
    """Image and text embedding of every sample, each of unit norm, concatenated (Chen et al., 2024).

    Leaves `features.npy`, (n, 2 · d) float16 where the authors' code uses float32, and `ids.parquet`.
    """

    name: ClassVar[str] = "clip_features"

    def shards(self, store: Store, folder: Path) -> ArrayShards[Record]:
        """The samples."""

        def concatenate(batches: Batches[Record]) -> Iterator[NDArray[np.float16]]:
            for both in self.embedded(store, batches):
                yield np.hstack(both).astype(np.float16)

        return ArrayShards(
            folder=folder / "shards",
            items=store.load(self.instructions),
            label="embedding samples",
            to_batches=lambda shard: list(chunks(shard, self.clip.batch_size)),
            compute_batches=concatenate,
        )

    def join(self, store: Store, folder: Path, shards: ArrayShards[Record]) -> dict[str, Any]:
        """Joins the shards into one file."""
        ids = pd.Series([record.id for record in shards.items])
        dimensions = self.write(folder, ids, shards.files, np.arange(len(ids)))
        return {"samples": len(ids), "dimensions": dimensions}
