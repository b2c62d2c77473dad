"""Stage `relevance`: both losses of every sample, the terms of its IRS, and its EL2N."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from presel.errors import PreselError
from presel.models.hardware import runs_under_autocast
from presel.models.lvlm import Lvlm
from presel.stages.inference import InferenceStage
from presel.stages.instructions import SamplesStage
from presel.stages.results import TableStage
from presel.stages.token_batches import encoded_batches, longest_first, measure, shards_by_length
from presel.stages.tuning import TuningStage
from presel.storage.shards import Batches, TableShards
from presel.storage.store import Store

_log = logging.getLogger(__name__)

# How many of the longest samples may decide whether one pass is enough, four at a time: a window of
# attention, for one, makes a difference to long ones only.
_DECIDING = 32


@dataclass(frozen=True, kw_only=True)
class RelevanceStage(TableStage, InferenceStage[pd.DataFrame]):
    """Losses with and without the question under a model (eq. 1 and 2), and EL2N.

    Leaves `relevance.parquet`: id, loss_with_question, loss_without_question, el2n, n_tokens.

    Images are prepared and weights rounded as in tuning (padded to square, `lvlm.dtype`); the released code
    scores in float16, and images by CLIP's center crop. As released, samples of several turns have an end of
    sequence for each answer with the questions, and a single one without.

    Attributes:
        model: The model that scores: a tuned one, as the reference model, or one without any tuning.
        instructions: The samples: those of the reference set or of half of it, or of the whole pool for
            strategies that score all of it.
    """

    name: ClassVar[str] = "relevance"
    version: ClassVar[int] = 4

    instructions: SamplesStage
    model: TuningStage | Lvlm

    @property
    def label(self) -> str:
        """Says which samples are scored, and whether by the base model."""
        base = ", base" if isinstance(self.model, Lvlm) else ""
        return f"{self.name} ({self.instructions.purpose}{base})"

    @property
    def lvlm(self) -> Lvlm:
        """The model before any tuning."""
        return self.model if isinstance(self.model, Lvlm) else self.model.lvlm

    def shards(self, store: Store, folder: Path) -> TableShards[int]:
        """The samples, longest first, scored in one pass.

        Raises:
            PreselError: If a sample does not fit into memory, or has no response within the model's maximum
                length.
        """
        from presel.models.conversations import ConversationEncoder
        from presel.models.losses import Scorer
        from presel.models.prompt_pairs import pair, pair_batch

        encoder = ConversationEncoder(self.lvlm)
        examples = self.instructions.examples(store)
        ids = partial(self.instructions.ids, store)
        lengths, truncated = measure(folder, examples, partial(pair, encoder), self.lvlm.max_length, ids=ids)

        def score(batches: Batches[int]) -> Iterator[pd.DataFrame]:
            adapter = None if isinstance(self.model, Lvlm) else store.load(self.model)
            model = self.lvlm.load_for_inference(self.runtime.hardware, adapter)
            scorer = Scorer(model, runs_under_autocast(self.runtime.hardware, self.lvlm.dtype))
            encode = partial(pair_batch, encoder)
            longest = [examples[row] for row in longest_first(lengths)[:_DECIDING]]
            scorer.decide(encode(longest[start : start + 4]) for start in range(0, len(longest), 4))
            for rows, batch in encoded_batches(batches, examples, encode, self.runtime.workers):
                losses = scorer.losses(batch)
                yield pd.DataFrame(
                    {
                        "row": rows,
                        "loss_with_question": losses.with_question.double().numpy(),
                        "loss_without_question": losses.without_question.double().numpy(),
                        "el2n": losses.el2n.double().numpy(),
                        "n_tokens": losses.n_tokens.numpy(),
                        "passes": scorer.passes(batch).numpy(),
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
            PreselError: If a loss is not a number.
        """
        scored = shards.joined().sort_values("row", ignore_index=True)
        table = scored.drop(columns=["row", "passes"])
        table.insert(0, "id", self.instructions.ids(store))
        check_losses(table, ["loss_with_question", "loss_without_question", "el2n"])
        self.write(folder, table)
        certain = int((table["loss_without_question"] == 0).sum())
        if certain:
            _log.info(
                f"  {certain} of {len(table)} samples have a loss without question of exactly 0: their IRS "
                "(eq. 3) is undefined, and no mean counts it"
            )
        return {
            "samples": len(table),
            "tokens": int(table["n_tokens"].sum()),
            **shards.measured,
            "in_one_pass": int((scored["passes"] == 1).sum()),
            "in_two_passes": int((scored["passes"] == 2).sum()),
            "irs_undefined": certain,
        }


def check_losses(table: pd.DataFrame, losses: Sequence[str]) -> None:
    """Checks the losses of samples.

    Args:
        table: One row per sample: id, n_tokens, and the losses.
        losses: Their columns.

    Raises:
        PreselError: If a loss is not a number.
    """
    if (broken := ~np.isfinite(table[list(losses)].to_numpy()).all(axis=1)).any():
        raise PreselError(
            f"record '{table['id'][broken].iloc[0]}': its loss under the model is not a number "
            f"({broken.sum()} of {len(table)} records); compute more precisely (lvlm.dtype=float32, or "
            "bfloat16 instead of float16), or lower tune.lr if the model was tuned"
        )
