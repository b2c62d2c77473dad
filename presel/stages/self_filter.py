"""Stage `self_filter`: every sample's score by a score net trained jointly with the model."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.errors import PreselError
from presel.importance import relevance_scores
from presel.selection.arrays import FloatMatrix
from presel.stages.relevance import RelevanceStage
from presel.stages.results import TableStage
from presel.stages.tuning import FineTuneStage
from presel.storage.store import Store

if TYPE_CHECKING:
    from presel.models.tuner import MakeTuner


@component
class ScoreNet:
    """The net that weights samples by their scores (Self-Filter).

    Attributes:
        epochs: Passes over the whole pool, in place of the model's own.
        lr: Peak learning rate of the net.
    """

    epochs: Annotated[int, Field(gt=0)] = 3
    lr: Annotated[float, Field(gt=0)] = 2e-5


@dataclass(frozen=True, kw_only=True)
class SelfFilterStage(TableStage, FineTuneStage[pd.DataFrame]):
    """Scores of the training set by Self-Filter's score net (Chen et al., 2024); low is difficult.

    Leaves `self_filter.parquet`: id, score. The net's inputs are the losses with and without the question,
    their ratio (IRS) and EL2N, each scaled to [-1, 1]; those of the authors are CLIP score, ImageReward and a
    rating by GPT-3.5. The model is tuned by LoRA, the authors' in full, and is not kept.

    Attributes:
        scores: The scores of the same training set, in the same order.
        lr: Peak learning rate of the score net.
    """

    name: ClassVar[str] = "self_filter"
    version: ClassVar[int] = 2
    # The net's weights are a softmax over the micro-batch, whose samples the authors draw at random.
    by_length: ClassVar[bool] = False

    scores: RelevanceStage
    lr: float

    def check(self, store: Store) -> None:
        """Checks besides that the score net is not sharded over processes."""
        super().check(store)
        strategy = self.runtime.hardware.strategy
        if strategy not in ("single", "ddp"):
            raise PreselError(
                f"strategy=self_filter: trainer.strategy={strategy} would spread the weights of its net; set "
                "trainer=ddp"
            )

    def make_tuner(self, store: Store) -> "MakeTuner":
        """Trains score net and model jointly."""
        from presel.models.score_net import ScoreNetTuner

        return partial(ScoreNetTuner, scores=min_max_scaled(self._net_inputs(store).to_numpy()), lr=self.lr)

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Trains score net and model jointly, then scores every sample by the final net."""
        from presel.models.score_net import SCORE_NET

        measured = super().compute(store, folder)
        inputs = self._net_inputs(store)
        weights = np.load(folder / SCORE_NET)  # (4,)
        ids, scores = store.load(self.scores)["id"], min_max_scaled(inputs.to_numpy()) @ weights
        self.write(folder, pd.DataFrame({"id": ids, "score": scores}))
        return measured | {"weights": dict(zip(inputs, weights.tolist(), strict=True))}

    def _net_inputs(self, store: Store) -> pd.DataFrame:
        """The net's inputs, one column each; an undefined IRS (`relevance_scores`) counts as 1."""
        table = store.load(self.scores)
        relevance = relevance_scores(table["loss_with_question"], table["loss_without_question"])
        return table[["loss_with_question", "loss_without_question", "el2n"]].assign(
            irs=np.nan_to_num(relevance, nan=1.0)
        )


def min_max_scaled(columns: FloatMatrix) -> FloatMatrix:
    """Scales each column of an (n, c) array linearly to [-1, 1]; a constant column to 0."""
    lowest, highest = columns.min(axis=0), columns.max(axis=0)
    half = (highest - lowest) / 2
    scaled: FloatMatrix = (columns - (lowest + highest) / 2) / np.where(half > 0, half, 1)
    return scaled
