"""Stage `relevance`: both losses of every reference sample, the terms of its IRS."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from presel.data.llava import Record
from presel.errors import PreselError
from presel.files import write_table
from presel.shards import chunks, table_in_shards
from presel.stages.instructions import InstructionsStage
from presel.stages.tuning import TuningStage
from presel.store import Stage, Store


@dataclass(frozen=True)
class RelevanceStage(Stage[pd.DataFrame]):
    """Losses with and without the question under the reference model (eq. 1 and 2).

    Leaves `relevance.parquet`: id, loss_with_question, loss_without_question, n_tokens.

    Attributes:
        model: The reference model.
        instructions: The reference set's instructions.
        batch_size: Samples a forward pass.
    """

    name: ClassVar[str] = "relevance"

    model: TuningStage
    instructions: InstructionsStage
    batch_size: int = field(compare=False)

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Scores the reference set, two passes a batch.

        Raises:
            PreselError: If a sample's responses lie beyond the model's maximal length.
        """
        from presel.models.conversations import ConversationEncoder, Example
        from presel.models.hardware import device_for
        from presel.models.losses import response_losses

        lvlm = self.model.lvlm
        encoder = ConversationEncoder(lvlm)
        model = lvlm.load_model(store.load(self.model)).to(device_for(self.model.hardware.accelerator))
        images = self.instructions.pool.source.files(store).images

        def score(records: Sequence[Record]) -> pd.DataFrame:
            parts = []
            for batch in chunks(records, self.batch_size):
                examples = [Example(images / record.image, record.conversations) for record in batch]
                with_question, _ = response_losses(model, encoder, examples, question=True)
                without_question, tokens = response_losses(model, encoder, examples, question=False)
                parts.append(
                    pd.DataFrame(
                        {
                            "id": [record.id for record in batch],
                            "loss_with_question": with_question.double().numpy(),
                            "loss_without_question": without_question.double().numpy(),
                            "n_tokens": tokens.numpy(),
                        }
                    )
                )
            return pd.concat(parts)

        records = store.load(self.instructions)
        table = table_in_shards(folder / "shards", records, "scoring the reference set", score)
        unscored = table[table.isna().any(axis=1)]
        if len(unscored):
            raise PreselError(
                f"record '{unscored['id'].iloc[0]}': none of its responses lies within lvlm.max_length="
                f"{lvlm.max_length} tokens, so it has no relevance score; raise lvlm.max_length"
            )
        write_table(folder / "relevance.parquet", table)
        return {"samples": len(table), "tokens": int(table["n_tokens"].sum())}

    def load(self, folder: Path) -> pd.DataFrame:
        """The table of losses, one row a reference sample."""
        return pd.read_parquet(folder / "relevance.parquet")
