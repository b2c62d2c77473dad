"""Stages `clip_scores` and `clip_features`: CLIP embeddings of every sample's image and text."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from presel.data.llava import Record
from presel.distributed.stage import ShardedStage
from presel.models.clip import Clip
from presel.selection.arrays import Float32Matrix
from presel.selection.feature_rows import Features
from presel.stages.features import VectorsStage
from presel.stages.instructions import InstructionsStage
from presel.stages.results import TableStage
from presel.storage.shards import ArrayShards, Batches, Shards, TableShards, chunks
from presel.storage.stage import T_co
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ClipStage(ShardedStage[T_co]):
    """Base of both stages.

    Attributes:
        shard_type: Form of the shards.
        instructions: The samples.
        clip: The model.
    """

    shard_type: ClassVar[type[Shards[Any, Any]]]

    instructions: InstructionsStage
    clip: Clip

    def check(self, store: Store) -> None:
        """Checks devices and model."""
        super().check(store)
        self.clip.check()

    @abstractmethod
    def combine(self, batch: Sequence[Record], images: Float32Matrix, texts: Float32Matrix) -> Any:
        """A batch's rows of the result, from the unit embeddings of its images and texts, (n, d) each."""

    def shards(self, store: Store, folder: Path) -> Shards[Record, Any]:
        """The samples, embedded in batches."""
        from presel.models.conversations import Example

        root = self.instructions.pool.files(store).images

        def embed(batches: Batches[Record]) -> Iterator[Any]:
            examples = [[Example(one.paths(root), one.conversations) for one in batch] for batch in batches]
            embedded = self.clip.embed(examples, self.runtime.workers, self.runtime.hardware.accelerator)
            for batch, (images, texts) in zip(batches, embedded, strict=True):
                yield self.combine(batch, images, texts)

        return self.shard_type(
            folder=folder / "shards",
            items=store.load(self.instructions),
            label="embedding samples",
            to_batches=lambda shard: list(chunks(shard, self.clip.batch_size)),
            compute_batches=embed,
            name=lambda record: record.id,
        )


@dataclass(frozen=True, kw_only=True)
class ClipScoresStage(TableStage, ClipStage[pd.DataFrame]):
    """Cosine similarity of image and text embedding of every sample.

    Leaves `clip_scores.parquet`: id, clip_score (-1 to 1).
    """

    name: ClassVar[str] = "clip_scores"
    shard_type: ClassVar[type[Shards[Any, Any]]] = TableShards

    def combine(self, batch: Sequence[Record], images: Float32Matrix, texts: Float32Matrix) -> pd.DataFrame:
        """One row per sample: id, clip_score."""
        cosines = np.einsum("ij,ij->i", images, texts)  # (n, d), (n, d) -> (n,)
        return pd.DataFrame({"id": [record.id for record in batch], "clip_score": cosines})

    def join(self, store: Store, folder: Path, shards: Any) -> dict[str, Any]:
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
    shard_type: ClassVar[type[Shards[Any, Any]]] = ArrayShards

    def combine(
        self, batch: Sequence[Record], images: Float32Matrix, texts: Float32Matrix
    ) -> NDArray[np.float16]:
        """Both embeddings side by side, (n, 2 · d)."""
        return np.hstack((images, texts)).astype(np.float16)

    def join(self, store: Store, folder: Path, shards: Any) -> dict[str, Any]:
        """Joins the shards into one file."""
        ids = pd.Series([record.id for record in shards.items])
        dimensions = self.write(folder, ids, shards.files, np.arange(len(ids)))
        return {"samples": len(ids), "dimensions": dimensions}
