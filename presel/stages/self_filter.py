"""Stage `self_filter`: every sample's score by a net that is trained beside the vision-language model."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from presel.errors import PreselError
from presel.importance import relevance_scores
from presel.stages.relevance import RelevanceStage
from presel.stages.tuning import FineTuneStage
from presel.storage.files import write_table
from presel.storage.store import Store

if TYPE_CHECKING:
    from presel.models.tuner import MakeTuner

FloatMatrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SelfFilterStage(FineTuneStage[pd.DataFrame]):
    """Scores of the training set by Self-Filter's score net (Chen et al., 2024); low is difficult.

    Leaves `self_filter.parquet`: id, score. The net reads what is measured here anyway, the losses with and
    without the question, their ratio (IRS) and EL2N, each scaled to [-1, 1]; that of the authors reads CLIP
    score, ImageReward and a rating by GPT-3.5. The model is tuned by LoRA, the authors' in full, and is not
    kept.

    Attributes:
        scores: The scores of the same training set, in the same order.
        lr: Peak learning rate of the net.
    """

    name: ClassVar[str] = "self_filter"
    version: ClassVar[int] = 2
    # The net's weights are a softmax over the micro-batch, which the authors draw at random.
    by_length: ClassVar[bool] = False

    scores: RelevanceStage
    lr: float

    def check(self) -> None:
        """Checks besides that the net is not to be spread over processes."""
        super().check()
        if self.hardware.strategy not in ("single", "ddp"):
            raise PreselError(
                f"strategy=self_filter: trainer.strategy={self.hardware.strategy} would spread the weights "
                "of its net; set trainer=ddp"
            )

    def make_tuner(self, store: Store) -> "MakeTuner":
        """What trains net and model together."""
        from presel.models.score_net import ScoreNetTuner

        return partial(ScoreNetTuner, scores=min_max_scaled(self._read(store).to_numpy()), lr=self.lr)

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Trains net and model together, then scores every sample by the final net."""
        from presel.models.score_net import SCORE_NET

        measured = self.fine_tune(store, folder)
        read = self._read(store)
        weights = np.load(folder / SCORE_NET)
        ids, scores = store.load(self.scores)["id"], min_max_scaled(read.to_numpy()) @ weights
        write_table(folder / "self_filter.parquet", pd.DataFrame({"id": ids, "score": scores}))
        return measured | {"weights": dict(zip(read, weights.tolist(), strict=True))}

    def _read(self, store: Store) -> pd.DataFrame:
        """What the net reads, one column each; an IRS that is undefined (`relevance_scores`) reads as 1."""
        table = store.load(self.scores)
        relevance = relevance_scores(table["loss_with_question"], table["loss_without_question"])
        return table[["loss_with_question", "loss_without_question", "el2n"]].assign(
            irs=np.nan_to_num(relevance, nan=1.0)
        )

    def load(self, folder: Path) -> pd.DataFrame:
        """The table of scores, one row a sample."""
        return pd.read_parquet(folder / "self_filter.parquet")


def min_max_scaled(columns: FloatMatrix) -> FloatMatrix:
    """Scales each column, (n, c), linearly to [-1, 1]; one whose values are all the same to 0."""
    lowest, highest = columns.min(axis=0), columns.max(axis=0)
    half = (highest - lowest) / 2
    scaled: FloatMatrix = (columns - (lowest + highest) / 2) / np.where(half > 0, half, 1)
    return scaled
