"""Stage `multimodal_features`: one vector for every sample of the pool, image and text together."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from presel.models.lvlm import Lvlm
from presel.selection.feature_rows import Features
from presel.stages.features import VectorsStage
from presel.stages.inference import InferenceStage
from presel.stages.instructions import InstructionsStage
from presel.stages.token_batches import encoded_batches, measure, shards_by_length
from presel.storage.shards import ArrayShards, Batches
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class MultimodalFeaturesStage(VectorsStage, InferenceStage[Features]):
    """Features of every sample by `MultimodalEncoder`, `features.npy` and `ids.parquet`.

    Attributes:
        lvlm: The model, untuned, so that runs of all seeds share its features; the paper's is a small LLaVA
            that was tuned on all instructions.
        instructions: Those of the whole pool.
    """

    name: ClassVar[str] = "multimodal_features"
    version: ClassVar[int] = 2

    lvlm: Lvlm
    instructions: InstructionsStage

    def check_data(self, store: Store) -> None:
        """Checks the model's modules before any instruction is bought.

        Raises:
            PreselError: If the features cannot be computed from them.
        """
        if not store.has(self):
            from presel.models.multimodal import output_projections

            output_projections(self.lvlm.without_weights(), self.lvlm.language_model)

    def shards(self, store: Store, folder: Path) -> ArrayShards[int]:
        """The samples, longest first."""
        from presel.models.conversations import ConversationEncoder
        from presel.models.multimodal import MultimodalEncoder

        conversations = ConversationEncoder(self.lvlm)
        examples = self.instructions.examples(store)
        lengths, truncated = measure(
            folder,
            examples,
            conversations.prompt,
            self.lvlm.max_length,
        )

        def encode(batches: Batches[int]) -> Iterator[NDArray[np.float16]]:
            model = self.lvlm.load_for_inference(self.runtime.hardware)
            encoder = MultimodalEncoder(model, self.lvlm.language_model, conversations.image_token)
            workers = self.runtime.workers
            for _, batch in encoded_batches(batches, examples, conversations.batch, workers):
                yield encoder.features(batch).half().numpy()

        return shards_by_length(
            ArrayShards[int],
            folder,
            lengths,
            self.runtime.batch_tokens,
            label="encoding samples",
            name=lambda row: examples[row].name,
            compute=encode,
            measured={"truncated": truncated},
        )

    def join(self, store: Store, folder: Path, shards: ArrayShards[int]) -> dict[str, Any]:
        """Joins the shards into one file."""
        ids = self.instructions.ids(store)
        dimensions = self.write(folder, ids, shards.files, np.argsort(shards.items))
        return {"samples": len(ids), **shards.measured, "dimensions": dimensions}
