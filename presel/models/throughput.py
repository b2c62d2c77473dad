"""Throughput of a fine-tune: samples and response tokens per second, and model-FLOPs utilization.

Own code because Lightning's ThroughputMonitor cannot count response tokens and expects FLOPs from its caller.
"""

import time
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.throughput import get_available_flops

from presel.models.conversations import IGNORED

_PRECISIONS = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "32-true": torch.float32}


class Throughput(pl.Callback):
    """Counts from the end of the first batch on, so that the start-up time is excluded.

    Model-FLOPs utilization assumes a forward pass of both parts, see `forward_flops`, and as much for the
    gradient of the language model's activations; the weights are frozen. It counts neither padding nor the
    recomputation of gradient checkpointing, and is None if the device's peak is unknown, as on CPUs.
    """

    def __init__(self, model: torch.nn.Module, image_token: int) -> None:
        """Takes the model without adapter, and the id of the image token."""
        self._forward = forward_flops(model)
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
                batch["attention_mask"].new_tensor(len(batch["rows"])),
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
        flops = 2 * tokens * self._forward.token + image_tokens * self._forward.image_token
        peak = peak_flops(trainer.strategy.root_device, _PRECISIONS[trainer.precision])
        return {
            "samples_per_second": round(samples / seconds, 2),
            "response_tokens_per_second": round(responses / seconds, 1),
            "utilization": round(flops / seconds / peak / trainer.world_size, 4) if peak else None,
        }


class ForwardFlops(NamedTuple):
    """FLOPs of a forward pass: of a token in the language model, of an image token in the vision tower."""

    token: int
    image_token: int


def forward_flops(model: torch.nn.Module) -> ForwardFlops:
    """Counts 2 FLOPs per parameter of a matrix, without attention scores, embeddings and projector.

    A tower whose output is merged, as Qwen2.5-VL's is in squares of 2 by 2, runs on as many patches for each
    image token.
    """
    token = patch = 0
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and not any(
            part in name for part in ("embed", "projector", "merger", "connector")
        ):
            if "vision" in name or "visual" in name:
                patch += 2 * weight.numel()
            else:
                token += 2 * weight.numel()
    tower = getattr(model.config, "vision_config", None)
    side = getattr(tower, "spatial_merge_size", 1)
    return ForwardFlops(token, patch * side**2)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The peak of a device in dense FLOPs per second; None if it is unknown, as that of CPUs."""
    # Lightning does not recognize the H200's name, and lists its peak with sparsity: the chip is the H100's.
    if device.type == "cuda" and torch.cuda.get_device_name(device) == "NVIDIA H200" and dtype.itemsize == 2:
        return 989.4e12
    return get_available_flops(device, dtype)
