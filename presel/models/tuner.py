"""Fine-tuning with LoRA: one Lightning module for the reference model and for the final one."""

import logging
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import Logger
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from presel.console import console
from presel.data.llava import Record
from presel.errors import PreselError
from presel.models.batching import BatchPlan, plan_batches
from presel.models.conversations import IGNORED, ConversationEncoder, Example
from presel.models.hardware import precision_for
from presel.models.lvlm import Lvlm
from presel.models.tune import Hardware, Tune

# Importing Lightning sets this level to INFO, on which it advertises.
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)

Batch = dict[str, Tensor]


class Tuner(pl.LightningModule):
    """Language model by LoRA, projector in full, vision tower frozen; loss on responses only."""

    # Checkpoints hold the trained weights alone.
    strict_loading = False

    def __init__(self, model: PeftModel, settings: Tune, steps: int, seed: int) -> None:
        """Takes the model and the number of optimizer steps the schedule spans."""
        super().__init__()
        self.model = model
        self._settings = settings
        self._steps = steps
        self._seed = seed

    def on_fit_start(self) -> None:
        """Switches to training: neither transformers nor PEFT nor Lightning does."""
        self.model.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout by the batch's number, so that a resumed run draws what it would have drawn."""
        torch.manual_seed(self._seed * 1_000_003 + self.current_epoch * 100_003 + batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy over the batch's response tokens."""
        loss: Tensor = self.model(**batch, use_cache=False).loss
        self.log("train/loss", loss, batch_size=len(batch["input_ids"]), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with a rate each for LoRA and projector; cosine schedule with linear warm-up."""
        trained = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        groups = [
            {"params": [weight for name, weight in trained if "lora_" in name], "lr": self._settings.lr},
            {
                "params": [weight for name, weight in trained if "lora_" not in name],
                "lr": self._settings.projector_lr,
            },
        ]
        optimizer = AdamW(groups, weight_decay=self._settings.weight_decay)
        warmup = math.ceil(self._settings.warmup_share * self._steps)
        schedule = LambdaLR(optimizer, lambda step: cosine_with_warmup(step, warmup, self._steps))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the trained weights only."""
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        checkpoint["state_dict"] = {
            name: tensor for name, tensor in checkpoint["state_dict"].items() if name in trained
        }


def cosine_with_warmup(step: int, warmup: int, steps: int) -> float:
    """Factor on the peak rate: linear over the first `warmup` steps, then a half cosine down to 0."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def add_lora(model: PreTrainedModel, lvlm: Lvlm, settings: Tune) -> PeftModel:
    """Puts LoRA on every linear layer of the language model and makes the projector trainable.

    The vision tower has layers of the same names, so the layers are named in full.
    """
    inside = re.compile(rf"(^|\.){re.escape(lvlm.language_model)}\.")
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and inside.search(name)
    ]
    return get_peft_model(
        model,
        LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            bias="none",
            target_modules=targets,
            modules_to_save=[lvlm.projector],
        ),
    )


def tune(
    lvlm: Lvlm,
    settings: Tune,
    hardware: Hardware,
    records: Sequence[Record],
    images: Path,
    folder: Path,
    seed: int,
    workers: int,
    logger: Logger,
) -> dict[str, Any]:
    """Fine-tunes a model and leaves a PEFT adapter, going on from the last checkpoint in `folder`.

    Args:
        lvlm: The base model.
        settings: How to tune it.
        hardware: Where.
        records: The training set.
        images: Folder of its images.
        folder: Takes `adapter/`, and the checkpoints while it runs.
        seed: Decides initial weights, batches and dropout.
        workers: Processes that prepare batches; the result does not depend on it.
        logger: Lightning logger.

    Returns:
        Optimizer steps, samples and last training loss.

    Raises:
        PreselError: If a record has no response within the model's maximal length.
    """
    pl.seed_everything(seed, verbose=False)
    encoder = ConversationEncoder(lvlm)
    examples = [Example(images / record.image, record.conversations) for record in records]
    lengths = _lengths(encoder, records)
    epochs = [
        plan_batches(lengths, settings.micro_batch_size, seed + epoch, settings.group_by_length)
        for epoch in range(settings.epochs)
    ]
    accumulate = settings.batch_size // settings.micro_batch_size
    steps = settings.epochs * math.ceil(len(epochs[0]) / accumulate)
    model = add_lora(lvlm.load_model(), lvlm, settings)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()

    last = folder / "checkpoints" / "last.ckpt"
    loader = DataLoader(
        _Batches(encoder, examples),
        sampler=BatchPlan(epochs, _batches_done(last)),
        batch_size=None,  # the sampler draws whole batches
        num_workers=workers,
    )
    trainer = pl.Trainer(
        accelerator=hardware.accelerator,
        devices=1,
        precision=precision_for(hardware.accelerator)  # type: ignore[arg-type]
        if hardware.precision == "auto"
        else hardware.precision,
        max_epochs=settings.epochs,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=settings.max_grad_norm,
        logger=logger,
        log_every_n_steps=10,
        callbacks=[
            ModelCheckpoint(
                dirpath=last.parent,
                filename="{step}",
                every_n_train_steps=settings.checkpoint_steps,
                save_last=True,
                enable_version_counter=False,
            ),
            *([RichProgressBar(leave=False)] if console.is_terminal else []),
        ],
        enable_progress_bar=console.is_terminal,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    tuner = Tuner(model, settings, steps, seed)
    trainer.fit(tuner, loader, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    model.save_pretrained(str(folder / "adapter"))
    shutil.rmtree(last.parent, ignore_errors=True)
    loss = trainer.callback_metrics.get("train/loss")
    return {
        "steps": trainer.global_step,
        "samples": len(records),
        "loss": float(loss) if loss is not None else None,
    }


class _Batches(Dataset[Batch]):
    """Encoded batches, looked up by the rows that make one up."""

    def __init__(self, encoder: ConversationEncoder, examples: Sequence[Example]) -> None:
        self._encoder = encoder
        self._examples = examples

    def __getitem__(self, rows: list[int]) -> Batch:
        return self._encoder.batch([self._examples[row] for row in rows])


def _lengths(encoder: ConversationEncoder, records: Sequence[Record]) -> list[int]:
    lengths = []
    for record in records:
        ids, labels = encoder.tokens(record.conversations)
        if all(label == IGNORED for label in labels):
            raise PreselError(
                f"record '{record.id}': none of its responses lies within the first {len(ids)} tokens; "
                "shorten the question or raise lvlm.max_length"
            )
        lengths.append(len(ids))
    return lengths


def _batches_done(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    # A checkpoint is written after a step, when its batch counts as processed but not yet as completed.
    done: int = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    return done
