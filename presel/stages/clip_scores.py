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
from presel.stages.features import load_features, write_features
from presel.stages.instructions import InstructionsStage
from presel.storage.files import write_table
from presel.storage.shards import Batches, Shards, array_shards, chunks, joined_table, table_shards
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
class ClipScoresStage(ClipStage[pd.DataFrame]):
    """Cosine similarity of image and text embedding of every sample.

    Leaves `clip_scores.parquet`: id, clip_score (-1 to 1).
    """

    name: ClassVar[str] = "clip_scores"

    def shards(self, store: Store, folder: Path) -> Shards[Record, pd.DataFrame]:
        """The samples."""

        def score(batches: Batches[Record]) -> Iterator[pd.DataFrame]:
            for batch, (images, texts) in zip(batches, self.embedded(store, batches), strict=True):
                cosines = np.einsum("ij,ij->i", images, texts)  # (n, d), (n, d) -> (n,)
                yield pd.DataFrame({"id": [record.id for record in batch], "clip_score": cosines})

        return table_shards(
            folder / "shards",
            store.load(self.instructions),
            "scoring samples",
            lambda shard: list(chunks(shard, self.clip.batch_size)),
            score,
        )

    def join(self, store: Store, folder: Path, shards: Shards[Record, pd.DataFrame]) -> dict[str, Any]:
        """Joins the shards into one table."""
        table = joined_table(shards)
        write_table(folder / "clip_scores.parquet", table)
        return {"samples": len(table)}

    def load(self, folder: Path) -> pd.DataFrame:
        """The table of scores, one row per sample."""
        return pd.read_parquet(folder / "clip_scores.parquet")


@dataclass(frozen=True, kw_only=True)
class ClipFeaturesStage(ClipStage[Features]):
    """Image and text embedding of every sample, each of unit norm, concatenated (Chen et al., 2024).

    Leaves `features.npy`, (n, 2 · d) float16 where the authors' code uses float32, and `ids.parquet`.
    """

    name: ClassVar[str] = "clip_features"

    def shards(self, store: Store, folder: Path) -> Shards[Record, NDArray[np.float16]]:
        """The samples."""

        def join(batches: Batches[Record]) -> Iterator[NDArray[np.float16]]:
            for both in self.embedded(store, batches):
                yield np.hstack(both).astype(np.float16)

        return array_shards(
            folder / "shards",
            store.load(self.instructions),
            "embedding samples",
            lambda shard: list(chunks(shard, self.clip.batch_size)),
            join,
        )

    def join(self, store: Store, folder: Path, shards: Shards[Record, NDArray[np.float16]]) -> dict[str, Any]:
        """Joins the shards into one file."""
        ids = pd.Series([record.id for record in shards.items])
        dimensions = write_features(folder, ids, shards.files, np.arange(len(ids)))
        return {"samples": len(ids), "dimensions": dimensions}

    def load(self, folder: Path) -> Features:
        """The features, memory-mapped."""
        return load_features(folder)
