"""Stage `clip_scores`: how well the text of every sample fits its image, by a CLIP."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from presel.data.llava import Record
from presel.files import write_table
from presel.models.clip import Clip
from presel.models.tune import Hardware
from presel.shards import Batches, Shards, chunks, joined_table, table_shards
from presel.stages.instructions import InstructionsStage
from presel.stages.parallel import ShardedStage
from presel.store import Store


@dataclass(frozen=True)
class ClipScoresStage(ShardedStage[pd.DataFrame]):
    """Cosine of image and text embedding of every sample.

    Leaves `clip_scores.parquet`: id, clip_score (-1 to 1).

    Attributes:
        instructions: Whose samples.
        clip: By what model.
        workers: Processes that prepare batches.
        hardware: Where.
    """

    name: ClassVar[str] = "clip_scores"

    instructions: InstructionsStage
    clip: Clip
    workers: int = field(compare=False)
    hardware: Hardware

    def shards(self, store: Store, folder: Path) -> Shards[Record, pd.DataFrame]:
        """The samples."""
        from presel.models.conversations import Example

        images = self.instructions.pool.files(store).images

        def score(batches: Batches[Record]) -> Iterator[pd.DataFrame]:
            examples = [
                [Example(images / one.image, one.conversations) for one in batch] for batch in batches
            ]
            scored = self.clip.score(examples, self.workers, self.hardware.accelerator)
            for batch, scores in zip(batches, scored, strict=True):
                yield pd.DataFrame({"id": [record.id for record in batch], "clip_score": scores})

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
        """The table of scores, one row a sample."""
        return pd.read_parquet(folder / "clip_scores.parquet")
