"""Stage `multimodal_features`: one vector for every sample of the pool, image and text together."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from presel.files import write_array
from presel.models.lvlm import Lvlm
from presel.shards import Batches, compute_shards
from presel.stages.features import Features, load_features, write_features
from presel.stages.instructions import InstructionsStage
from presel.stages.samples import cut_by_tokens, longest_first, measure
from presel.store import Stage, Store


@dataclass(frozen=True)
class MultimodalFeaturesStage(Stage[Features]):
    """Features of every sample by `MultimodalEncoder`, `features.npy` and `ids.parquet`.

    Attributes:
        lvlm: The model, untuned, so that runs of all seeds share its features.
        instructions: Those of the whole pool.
        batch_tokens: Tokens a forward pass, padding counted.
        workers: Processes that prepare batches.
        accelerator: Where.
    """

    name: ClassVar[str] = "multimodal_features"

    lvlm: Lvlm
    instructions: InstructionsStage
    batch_tokens: int = field(compare=False)
    workers: int = field(compare=False)
    accelerator: str = field(compare=False)

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Encodes the samples in shards, the longest first, then joins the shards into one file."""
        from presel.models.conversations import ConversationEncoder, Example
        from presel.models.hardware import device_for
        from presel.models.loading import prepared
        from presel.models.multimodal import MultimodalEncoder

        conversations = ConversationEncoder(self.lvlm)
        records = store.load(self.instructions)
        images = self.instructions.pool.files(store).images
        examples = [Example(images / record.image, record.conversations) for record in records]
        lengths, truncated = measure(
            examples, lambda example: conversations.tokens(example.conversations), self.lvlm.max_length
        )
        order = longest_first(lengths)

        def encode(batches: Batches[int]) -> Iterator[NDArray[np.float16]]:
            model = self.lvlm.load_model().to(device_for(self.accelerator))
            encoder = MultimodalEncoder(model, self.lvlm.language_model, conversations.image_token)
            chosen = [[examples[row] for row in batch] for batch in batches]
            for batch in prepared(chosen, conversations.batch, self.workers):
                yield encoder.features(batch).half().cpu().numpy()

        files = compute_shards(
            lambda number: folder / "shards" / f"part-{number:05}.npy",
            order,
            "encoding samples",
            partial(cut_by_tokens, lengths=lengths, tokens=self.batch_tokens),
            encode,
            lambda file, rows: write_array(file, np.concatenate(rows)),
        )
        ids = pd.Series([record.id for record in records])
        dimensions = write_features(folder, ids, files, np.argsort(order))
        return {"samples": len(records), "truncated": truncated, "dimensions": dimensions}

    def load(self, folder: Path) -> Features:
        """The features, memory-mapped."""
        return load_features(folder)
