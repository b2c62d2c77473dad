"""How fast a fine-tune goes: samples, response tokens, and the share of the device's arithmetic it uses."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.throughput import get_available_flops

from presel.models.conversations import IGNORED

_PRECISIONS = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "32-true": torch.float32}


class Throughput(pl.Callback):
    """Counts from the end of the first batch on, so that starting up does not count.

    Model-FLOPs utilization reckons with 4 operations a token and weight of the language model (2 forward, 2
    for the gradient of the activations; the weights are frozen) and 2 a token and weight of the vision tower,
    without attention's products, padding, or what gradient checkpointing computes again. It is None where
    Lightning knows no peak of the device, as on CPUs.
    """

    def __init__(self, model: torch.nn.Module, image_token: int) -> None:
        """Takes the model before it gets an adapter, and the token that stands for a part of an image."""
        sizes = {"language": 0, "vision": 0}
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name and "projector" not in name:
                sizes["vision" if "vision" in name else "language"] += weight.numel()
        self._sizes = sizes
        self._image_token = image_token
        self._started = self._last = 0.0
        self._counts: torch.Tensor

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts at 0."""
        self._counts = torch.zeros(4, dtype=torch.long, device=trainer.strategy.root_device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds a batch."""
        if not len(batch["rows"]):
            return
        self._last = time.perf_counter()
        if not self._started:
            self._started = self._last
            return
        # Kept on the device: reading a number would wait for the batch.
        self._counts += torch.stack(
            [
                batch["attention_mask"].new_tensor(len(batch["labels"])),
                (batch["labels"] != IGNORED).sum(),
                batch["attention_mask"].sum(),
                (batch["input_ids"] == self._image_token).sum(),
            ]
        )

    def measured(self, trainer: pl.Trainer) -> dict[str, float | None]:
        """Samples and response tokens a second of all processes, and utilization; nothing after one batch."""
        counts = trainer.strategy.reduce(self._counts, reduce_op="sum")
        samples, responses, tokens, image_tokens = counts.tolist()
        seconds = self._last - self._started
        if not seconds:
            return {}
        flops = 4 * tokens * self._sizes["language"] + 2 * image_tokens * self._sizes["vision"]
        peak = get_available_flops(trainer.strategy.root_device, _PRECISIONS[trainer.precision])
        return {
            "samples_per_second": round(samples / seconds, 2),
            "response_tokens_per_second": round(responses / seconds, 1),
            "utilisation": round(flops / seconds / peak / trainer.world_size, 4) if peak else None,
        }
