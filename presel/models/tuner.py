"""The Lightning module behind every fine-tune: LoRA on the language model, the projector in full."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from presel.models.inputs import Inputs
from presel.models.losses import token_losses
from presel.models.lvlm import Lvlm
from presel.models.sharding import full_tensor, shard
from presel.models.tune import Tune

# What a model takes, and `rows` and `step_tokens` of the micro-batch.
Batch = Inputs

# Primes that keep the dropout seeds of (run seed, epoch, batch) apart, up to ten epochs of 100,003
# micro-batches; trained weights depend on them.
_SEED_STRIDE = 1_000_003
_EPOCH_STRIDE = 100_003


class Tuner(pl.LightningModule):
    """Trains LoRA and projector with the vision tower frozen; the loss is on responses only."""

    # Checkpoints contain only the trained weights.
    strict_loading = False

    def __init__(self, model: PeftModel, settings: Tune, steps: int, seed: int) -> None:
        """Takes the model and the number of optimizer steps of the learning-rate schedule."""
        super().__init__()
        self.model = model
        self._settings = settings
        self._steps = steps
        self._seed = seed
        self._sharded = False
        self._losses: list[Tensor] = []

    def configure_model(self) -> None:
        """Shards the weights over the processes, under FSDP."""
        if self.device_mesh is not None and not self._sharded:
            shard(self.model, self.device_mesh["data_parallel"])
            self._sharded = True

    def on_fit_start(self) -> None:
        """Switches to training mode, which neither transformers nor PEFT nor Lightning does."""
        self.model.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout by the micro-batch's global index in the epoch.

        So a resumed run draws the same masks as an uninterrupted one, and several processes as one.
        """
        index = batch_idx * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed(self._seed * _SEED_STRIDE + self.current_epoch * _EPOCH_STRIDE + index)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the step's loss: the mean cross-entropy over the step's response tokens.

        Each micro-batch's sum is divided by the response tokens of the whole step, so that the step's loss
        does not depend on how it is split. The factor cancels Lightning's division by the number of
        accumulated micro-batches and the averaging of gradients over processes.
        """
        rows = batch["rows"]
        losses = token_losses(self.model, **batch.without("rows", "step_tokens"))  # (n, p)
        # Without those of a sample that was only added for its image, or to an empty micro-batch.
        losses = self.weighted(losses[: len(rows)], rows)
        factor = self.trainer.accumulate_grad_batches * self.trainer.world_size
        loss: Tensor = losses.sum() / batch["step_tokens"] * factor
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the loss of each whole optimizer step, over all processes."""
        self._losses.append(outputs["loss"])
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches and not self.trainer.is_last_batch:
            return
        loss = self.trainer.strategy.reduce(torch.stack(self._losses).sum(), reduce_op="mean")
        self.log("train/loss", loss)
        self._losses = []

    def weighted(self, losses: Tensor, rows: Tensor) -> Tensor:
        """The token losses of a micro-batch in nats, (n, p); a subclass may weight its samples.

        `rows`, (n,), are the samples' row numbers in the training set.
        """
        return losses

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trained parameters: LoRA and projector, each with its learning rate."""
        lora: list[Tensor] = []
        projector: list[Tensor] = []
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                (lora if "lora_" in name else projector).append(weight)
        return [
            {"params": lora, "lr": self._settings.lr},
            {"params": projector, "lr": self._settings.projector_lr},
        ]

    def configure_optimizers(self) -> Any:
        """AdamW; cosine schedule with linear warm-up."""
        optimizer = AdamW(self.parameter_groups(), weight_decay=self._settings.weight_decay)
        # At least one step at the peak rate.
        warmup = min(math.ceil(self._settings.warmup_share * self._steps), self._steps - 1)
        from_zero = self._settings.warmup_from_zero
        schedule = LambdaLR(optimizer, lambda step: cosine_with_warmup(step, warmup, self._steps, from_zero))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps only the trained weights."""
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        checkpoint["state_dict"] = {
            name: tensor for name, tensor in checkpoint["state_dict"].items() if name in trained
        }

    def save_result(self, folder: Path) -> None:
        """Writes the result of the fine-tune: the PEFT adapter, into `adapter/`."""
        weights = self.model.named_parameters()
        trained = {name: full_tensor(weight) for name, weight in weights if weight.requires_grad}
        if self.trainer.is_global_zero:
            config = self.model.peft_config["default"]
            # PEFT has a set here, whose order differs between processes.
            config.target_modules = sorted(config.target_modules or ())
            self.model.save_pretrained(str(folder / "adapter"), state_dict=trained)


# (model, settings, number of optimizer steps, seed) -> Lightning module
MakeTuner = Callable[[PeftModel, Tune, int, int], Tuner]


def cosine_with_warmup(step: int, warmup: int, steps: int, from_zero: bool) -> float:
    """Factor on the peak learning rate: linear over the first `warmup` steps, then a half cosine down to 0.

    Args:
        step: Optimizer step, from 0 on.
        warmup: Steps before the peak rate.
        steps: Total number of steps; the rate is 0 only after the last.
        from_zero: Whether step 0 has rate 0.
    """
    if step < warmup:
        return step / warmup if from_zero else (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def lora_targets(model: PreTrainedModel, lvlm: Lvlm) -> list[str]:
    """Names of the layers that get LoRA: every linear layer of the language model."""
    inside = re.compile(rf"(^|\.){re.escape(lvlm.language_model)}\.")
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and inside.search(name)
    ]


def add_lora(model: PreTrainedModel, lvlm: Lvlm, settings: Tune) -> PeftModel:
    """Adds LoRA to every linear layer of the language model and makes the projector trainable.

    The vision tower has layers of the same names, so target layers are given by their full names.
    """
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=lora_targets(model, lvlm),
        modules_to_save=_projectors(model, lvlm),
    )
    tuned = get_peft_model(model, config)
    # Half precision would round most updates of a small learning rate to 0. PEFT converts LoRA weights only.
    for weight in tuned.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return tuned


def _projectors(model: PreTrainedModel, lvlm: Lvlm) -> list[str]:
    """The projector's modules, those of a list one by one, since PEFT trains no list."""
    found = []
    for wanted in lvlm.projectors:
        module = next(module for name, module in model.named_modules() if f".{name}".endswith(f".{wanted}"))
        parts = range(len(module)) if isinstance(module, torch.nn.ModuleList) else []
        found += [f"{wanted}.{number}" for number in parts] or [wanted]
    return found
