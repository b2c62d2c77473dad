"""Throughput of a fine-tune: samples and response tokens per second, and model-FLOPs utilization.

Own code because Lightning's ThroughputMonitor cannot count response tokens and expects FLOPs from its caller.
"""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.throughput import get_available_flops

from presel.models.conversations import IGNORED

_PRECISIONS = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "32-true": torch.float32}


class Throughput(pl.Callback):
    """Counts from the end of the first batch on, so that the start-up time is excluded.

    Model-FLOPs utilization assumes 4 FLOPs per token and parameter of the language model (2 forward, 2 for
    the gradient of the activations; the weights are frozen) and 2 per image token and parameter of the vision
    tower, without attention scores, padding, and the recomputation of gradient checkpointing. It is None if
    the device's peak is unknown, as on CPUs.
    """

    def __init__(self, model: torch.nn.Module, image_token: int) -> None:
        """Takes the model without adapter, and the id of the image token."""
        self._parameters = matrix_parameters(model)
        self._image_token = image_token
        self._started = self._last = 0.0
        self._counts: torch.Tensor

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Resets the counts: samples, response tokens, tokens, image tokens."""
        self._counts = torch.zeros(4, dtype=torch.long, device=trainer.strategy.root_device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a batch."""
        if not len(batch["rows"]):
            return
        self._last = time.perf_counter()
        if not self._started:
            self._started = self._last
            return
        # Kept on the device: reading a value would wait for the batch.
        self._counts += torch.stack(
            [
                batch["attention_mask"].new_tensor(len(batch["labels"])),
                (batch["labels"] != IGNORED).sum(),
                batch["attention_mask"].sum(),
                (batch["input_ids"] == self._image_token).sum(),
            ]
        )

    def measured(self, trainer: pl.Trainer) -> dict[str, float | None]:
        """Samples and response tokens per second, over all processes, and utilization; {} after one batch."""
        counts = trainer.strategy.reduce(self._counts, reduce_op="sum")
        samples, responses, tokens, image_tokens = counts.tolist()
        seconds = self._last - self._started
        if not seconds:
            return {}
        flops = 4 * tokens * self._parameters["language"] + 2 * image_tokens * self._parameters["vision"]
        peak = peak_flops(trainer.strategy.root_device, _PRECISIONS[trainer.precision])
        return {
            "samples_per_second": round(samples / seconds, 2),
            "response_tokens_per_second": round(responses / seconds, 1),
            "utilization": round(flops / seconds / peak / trainer.world_size, 4) if peak else None,
        }


def matrix_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Parameters of the matrices of the `language` model and of the `vision` tower.

    Embeddings and projector are left out.
    """
    parameters = {"language": 0, "vision": 0}
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "embed" not in name and "projector" not in name:
            parameters["vision" if "vision" in name else "language"] += weight.numel()
    return parameters


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The peak of a device in dense FLOPs per second; None if it is unknown, as that of CPUs."""
    # Lightning does not recognize the H200's name, and lists its peak with sparsity: the chip is the H100's.
    if device.type == "cuda" and torch.cuda.get_device_name(device) == "NVIDIA H200" and dtype.itemsize == 2:
        return 989.4e12
    return get_available_flops(device, dtype)
