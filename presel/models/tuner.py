"""Fine-tuning with LoRA: one Lightning module for the reference model and for the final one."""

import logging
import math
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from presel.console import progress
from presel.data.llava import Record
from presel.errors import PreselError
from presel.models.batching import BatchPlan, MicroBatch, deal, plan_epoch
from presel.models.conversations import IGNORED, ConversationEncoder, Example
from presel.models.hardware import Hardware, device_for, precision_for, processes_in_all, processes_on_node
from presel.models.losses import token_losses
from presel.models.lvlm import Lvlm
from presel.models.memory_trial import MemoryTrial
from presel.models.sharding import cluster_environment, gathered, last_checkpoint, lightning_strategy, shard
from presel.models.throughput import Throughput
from presel.models.tune import Tune
from presel.storage.files import atomic, checked

_log = logging.getLogger(__name__)

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
        self._sharded = False
        self._losses: list[Tensor] = []

    def configure_model(self) -> None:
        """Spreads the weights over the processes, under FSDP."""
        if self.device_mesh is not None and not self._sharded:
            shard(self.model, self.device_mesh["data_parallel"])
            self._sharded = True

    def on_fit_start(self) -> None:
        """Switches to training: neither transformers nor PEFT nor Lightning does."""
        self.model.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout by the batch's number among those of all processes.

        So a resumed run draws what it would have drawn, and several processes what one would.
        """
        number = batch_idx * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed(self._seed * 1_000_003 + self.current_epoch * 100_003 + number)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the step's loss: the mean cross-entropy over all its response tokens.

        The sum over the step's micro-batches is that mean, however the step is cut, because each is divided
        by the tokens of the whole step. Lightning divides by the number of micro-batches, and the processes
        average their gradients, which the factor makes up for.
        """
        rows = batch["rows"]
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("rows", "step_tokens")}
        losses = self.weighted(token_losses(self.model, **inputs), rows)
        factor = self.trainer.accumulate_grad_batches * self.trainer.world_size
        loss: Tensor = losses.sum() / batch["step_tokens"] * factor
        return loss if len(rows) else loss * 0

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the loss of a whole optimizer step, over all processes."""
        self._losses.append(outputs["loss"])
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches and not self.trainer.is_last_batch:
            return
        loss = self.trainer.strategy.reduce(torch.stack(self._losses).sum(), reduce_op="mean")
        self.log("train/loss", loss)
        self._losses = []

    def weighted(self, losses: Tensor, rows: Tensor) -> Tensor:
        """The token losses as they count: as they are, where no subclass weighs the samples.

        Args:
            losses: Losses of a micro-batch in nats, (n, p).
            rows: Which records of the training set its samples are, (n,).

        Returns:
            Losses, (n, p).
        """
        return losses

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, with a rate each for LoRA and projector."""
        trained = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        return [
            {"params": [weight for name, weight in trained if "lora_" in name], "lr": self._settings.lr},
            {
                "params": [weight for name, weight in trained if "lora_" not in name],
                "lr": self._settings.projector_lr,
            },
        ]

    def configure_optimizers(self) -> Any:
        """AdamW; cosine schedule with linear warm-up."""
        optimizer = AdamW(self.parameter_groups(), weight_decay=self._settings.weight_decay)
        # At least one step at the full rate.
        warmup = min(math.ceil(self._settings.warmup_share * self._steps), self._steps - 1)
        from_zero = self._settings.warmup_from_zero
        schedule = LambdaLR(optimizer, lambda step: cosine_with_warmup(step, warmup, self._steps, from_zero))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the trained weights only."""
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        checkpoint["state_dict"] = {
            name: tensor for name, tensor in checkpoint["state_dict"].items() if name in trained
        }

    def save_result(self, folder: Path) -> None:
        """Writes what the fine-tune is for: the PEFT adapter, into `adapter/`."""
        trained = {
            name: gathered(weight) for name, weight in self.model.named_parameters() if weight.requires_grad
        }
        if self.trainer.is_global_zero:
            config = self.model.peft_config["default"]
            # PEFT keeps a set, whose order differs from process to process.
            config.target_modules = sorted(config.target_modules or ())
            self.model.save_pretrained(str(folder / "adapter"), state_dict=trained)


MakeTuner = Callable[[PeftModel, Tune, int, int], Tuner]


def cosine_with_warmup(step: int, warmup: int, steps: int, from_zero: bool) -> float:
    """Factor on the peak rate: linear over the first `warmup` steps, then a half cosine down to 0.

    Args:
        step: Optimizer step, from 0 on.
        warmup: Steps before the peak rate.
        steps: Steps in all; only the one after the last has rate 0.
        from_zero: Whether step 0 has rate 0.
    """
    if step < warmup:
        return step / warmup if from_zero else (step + 1) / (warmup + 1)
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
    tuned = get_peft_model(
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
    # In half precision most steps of a small learning rate would be rounded away. PEFT sees to LoRA only.
    for weight in tuned.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return tuned


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
    make_tuner: MakeTuner = Tuner,
    by_length: bool = True,
) -> dict[str, Any]:
    """Fine-tunes a model and leaves the tuner's result, going on from the last checkpoint in `folder`.

    Args:
        lvlm: The base model.
        settings: How to tune it.
        hardware: Where.
        records: The training set.
        images: Folder of its images.
        folder: Takes the result, `adapter/` by default, and the checkpoints while it runs.
        seed: Decides initial weights, batches and dropout.
        workers: Processes that prepare batches; the result does not depend on it.
        logger: Lightning logger.
        make_tuner: Makes the Lightning module from model, settings, number of optimizer steps, and seed.
        by_length: Whether the micro-batches of a step hold samples of like length.

    Returns:
        Optimizer steps, samples, how many of them were cut to the model's maximal length, last training
        loss, and throughput.

    Raises:
        PreselError: If a record has no response within the model's maximal length, a micro-batch does not
            fit into the GPU's memory, or the last checkpoint is damaged.
    """
    pl.seed_everything(seed, verbose=False)
    encoder = ConversationEncoder(lvlm)
    examples = [Example(images / record.image, record.conversations) for record in records]
    measured = _measure(encoder, records, lvlm.max_length)
    ids = [record.id for record in records]
    epochs = [
        plan_epoch(
            ids,
            measured.lengths,
            measured.response_tokens,
            settings.batch_size,
            settings.micro_batch_size,
            seed + epoch,
            by_length,
        )
        for epoch in range(settings.epochs)
    ]
    largest = max(
        (batch for steps in epochs for step in steps for batch in step),
        key=lambda batch: len(batch.rows) * max(measured.lengths[row] for row in batch.rows),
    )
    micro_batches = settings.batch_size // settings.micro_batch_size
    steps_an_epoch = len(epochs[0])
    steps = settings.epochs * steps_an_epoch
    base = lvlm.load_model()
    throughput = Throughput(base, encoder.image_token)
    model = add_lora(base, lvlm, settings)
    if settings.compile:
        model.compile(dynamic=True)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()

    processes = processes_in_all(hardware)
    accumulate = micro_batches // processes
    batches = _Batches(encoder, examples)
    checkpoints = folder / "checkpoints" / f"{hardware.strategy}-{processes}"
    step_counter = _StepCounter()
    trainer = pl.Trainer(
        # Lightning's `auto` would take devices that `device_for` does not, such as Apple's.
        accelerator=device_for(hardware.accelerator).type,
        strategy=lightning_strategy(hardware, processes, settings.micro_batch_size),
        devices=processes_on_node(hardware),
        num_nodes=hardware.nodes,
        precision=precision_for(hardware, lvlm.dtype),
        # In a Slurm job, Lightning would resume from whatever lies in the current one as `hpc_ckpt_*.ckpt`.
        default_root_dir=folder,
        max_epochs=settings.epochs,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=settings.max_grad_norm,
        logger=logger,
        log_every_n_steps=1,
        plugins=[_Checkpoints(), cluster_environment(hardware)],
        callbacks=[
            ModelCheckpoint(
                dirpath=checkpoints,
                filename="{step}",
                every_n_train_steps=settings.checkpoint_steps,
                enable_version_counter=False,
            ),
            throughput,
            MemoryTrial(lambda: batches[largest]),
            step_counter,
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if hardware.strategy != "single":
        epochs = [deal(steps, trainer.global_rank, processes, micro_batches) for steps in epochs]
    last, steps_done = last_checkpoint(checkpoints) or (None, 0)
    # PyTorch does not look at the checksums in it. DeepSpeed's is a folder, which it writes itself.
    if last is not None and last.is_file():
        checked(last)
    epoch, step = divmod(steps_done, steps_an_epoch)
    micro_batches_an_epoch = sum(len(step) for step in epochs[0])
    loader = DataLoader(
        batches,
        sampler=BatchPlan(epochs, epoch * micro_batches_an_epoch + step * accumulate),
        batch_size=None,  # the sampler draws whole batches
        num_workers=workers,
    )
    tuner = make_tuner(model, settings, steps, seed)
    with progress("optimizer steps", steps - steps_done) as step_counter.advance:
        _fit(trainer, tuner, loader, last)
    tuner.save_result(folder)
    if trainer.is_global_zero:
        shutil.rmtree(checkpoints.parent, ignore_errors=True)
    loss = trainer.callback_metrics.get("train/loss")
    return {
        "steps": trainer.global_step,
        "samples": len(records),
        "truncated": measured.truncated,
        "loss": float(loss) if loss is not None else None,
    } | throughput.measured(trainer)


def _fit(trainer: pl.Trainer, tuner: Tuner, loader: DataLoader[Batch], checkpoint: Path | None) -> None:
    try:
        trainer.fit(tuner, loader, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        # At Ctrl-C, Lightning exits with 1 and ignores any further one.
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from None


class _StepCounter(Callback):
    """Advances a progress bar at every optimizer step."""

    advance: Callable[[int], None]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts from the checkpoint that the trainer resumed from."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Micro-batches inside a step advance by 0."""
        self.advance(trainer.global_step - self._step)
        self._step = trainer.global_step


class _Checkpoints(TorchCheckpointIO):
    """Checkpoints that appear whole, also where the folder for temporary files is on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes beside the file, then renames."""
        with atomic(Path(path), with_digest=True) as temporary:
            torch.save(checkpoint, temporary)


class _Batches(Dataset[Batch]):
    """Encoded micro-batches, with their rows and the response tokens of their step.

    One without rows, which only keeps a process in step, holds the first sample.
    """

    def __init__(self, encoder: ConversationEncoder, examples: Sequence[Example]) -> None:
        self._encoder = encoder
        self._examples = examples

    def __getitem__(self, planned: MicroBatch) -> Batch:
        batch = self._encoder.batch([self._examples[row] for row in planned.rows or [0]])
        return batch | {
            "rows": torch.tensor(planned.rows, dtype=torch.long),
            "step_tokens": torch.tensor(planned.step_tokens),
        }


class _Measured(NamedTuple):
    lengths: list[int]
    response_tokens: list[int]
    truncated: int


def _measure(encoder: ConversationEncoder, records: Sequence[Record], max_length: int) -> _Measured:
    lengths, response_tokens, truncated = [], [], 0
    with progress("measuring the training set", len(records)) as advance:
        for record in records:
            prompt = encoder.tokens(record.conversations)
            supervised = sum(label != IGNORED for label in prompt.labels)
            if not supervised:
                raise PreselError(
                    f"record '{record.id}': none of its responses lies within the first {len(prompt.ids)} "
                    "tokens; shorten the question or raise lvlm.max_length"
                )
            lengths.append(len(prompt.ids))
            response_tokens.append(supervised)
            truncated += prompt.truncated
            advance(1)
    if truncated:
        _log.info(
            f"  {truncated} of {len(records)} samples are longer than lvlm.max_length={max_length} tokens; "
            "the ends of their answers are cut off"
        )
    return _Measured(lengths, response_tokens, truncated)
