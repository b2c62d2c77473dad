"""Stage `visual_necessity`: the losses of every sample with and without its image (VisNec)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from presel.models.lvlm import Lvlm
from presel.stages.inference import InferenceStage
from presel.stages.instructions import InstructionsStage
from presel.stages.relevance import check_losses
from presel.stages.results import TableStage
from presel.stages.token_batches import encoded_batches, measure, shards_by_length
from presel.storage.shards import Batches, TableShards
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class VisualNecessityStage(TableStage, InferenceStage[pd.DataFrame]):
    """Mean losses of the response tokens with and without the image, under a model before tuning.

    Leaves `visual_necessity.parquet`: id, loss_with_image, loss_without_image, n_tokens.

    Attributes:
        lvlm: The model.
        instructions: Those of the whole pool.
    """

    name: ClassVar[str] = "visual_necessity"

    lvlm: Lvlm
    instructions: InstructionsStage

    def shards(self, store: Store, folder: Path) -> TableShards[int]:
        """The samples, longest first."""
        from presel.models.conversations import ConversationEncoder
        from presel.models.losses import image_losses

        conversations = ConversationEncoder(self.lvlm)
        examples = self.instructions.examples(store)
        lengths, truncated = measure(
            folder,
            examples,
            conversations.prompt,
            self.lvlm.max_length,
            ids=partial(self.instructions.ids, store),
        )

        def score(batches: Batches[int]) -> Iterator[pd.DataFrame]:
            model = self.lvlm.load_for_inference(self.runtime.hardware)
            workers = self.runtime.workers
            for rows, batch in encoded_batches(batches, examples, conversations.batch, workers):
                losses = image_losses(model, batch, conversations.image_token)
                yield pd.DataFrame(
                    {
                        "row": rows,
                        "loss_with_image": losses.with_image.double().numpy(),
                        "loss_without_image": losses.without_image.double().numpy(),
                        "n_tokens": losses.n_tokens.numpy(),
                    }
                )

        return shards_by_length(
            TableShards[int],
            folder,
            lengths,
            self.runtime.batch_tokens,
            label="scoring samples",
            name=lambda row: examples[row].name,
            compute=score,
            measured={"truncated": truncated},
        )

    def join(self, store: Store, folder: Path, shards: TableShards[int]) -> dict[str, Any]:
        """Joins the shards into one table.

        Raises:
            PreselError: As in `check_losses`.
        """
        table = shards.joined().sort_values("row", ignore_index=True).drop(columns="row")
        table.insert(0, "id", self.instructions.ids(store))
        check_losses(table, ["loss_with_image", "loss_without_image"])
        self.write(folder, table)
        return {"samples": len(table), "tokens": int(table["n_tokens"].sum()), **shards.measured}
