"""Self-Filter's score net, trained with the model: it weights the samples of a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from presel.models.tuner import Tuner
from presel.storage.files import write_array

SCORE_NET = "score_net.npy"


class ScoreNetTuner(Tuner):
    """Trains a bias-free linear net on per-sample scores together with the model (Chen et al., 2024).

    A sample's weight is the softmax of the net's output over the micro-batch, times the number of samples, so
    that equal outputs leave the loss unchanged. Since each micro-batch is weighted separately, micro-batches
    must be random: grouped by length, they would contain similar samples, among which weights differ little.

    The net starts at zero, that is at equal weights; the authors' code starts from small random weights.
    """

    _scores: Tensor

    def __init__(self, *arguments: Any, scores: npt.NDArray[np.float64], lr: float) -> None:
        """As `Tuner`; besides the scores of all records, (records, c), and the net's peak learning rate."""
        super().__init__(*arguments)
        self.score_net = torch.nn.Linear(scores.shape[1], 1, bias=False)
        torch.nn.init.zeros_(self.score_net.weight)
        self.register_buffer("_scores", torch.from_numpy(scores).float(), persistent=False)
        self._lr = lr

    def weighted(self, losses: Tensor, rows: Tensor) -> Tensor:
        """Multiplies each sample's token losses, (n, p), by its weight; the weights have mean 1."""
        weights: Tensor = self.score_net(self._scores[rows]).softmax(dim=0) * len(rows)  # (n, 1)
        return losses * weights

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The model's groups, and the net with its learning rate."""
        return [*super().parameter_groups(), {"params": [self.score_net.weight], "lr": self._lr}]

    def save_result(self, folder: Path) -> None:
        """Writes the net's weights, (c,); the model is not kept."""
        weights = self.score_net.weight.detach().squeeze(0).double().cpu()
        if self.trainer.is_global_zero:
            write_array(folder / SCORE_NET, weights.numpy())
