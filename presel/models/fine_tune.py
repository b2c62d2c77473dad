"""A fine-tune from start to end: measures and plans the batches, prepares the model, trains, resumes."""

import logging
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from peft import PeftModel
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from presel.console import progress
from presel.data.llava import Record
from presel.errors import PreselError
from presel.models.batching import BatchPlan, MicroBatch, Step, plan_epoch, split_across_ranks
from presel.models.conversations import IGNORED, ConversationEncoder, Example
from presel.models.hardware import Hardware, device_for, precision_for, processes_per_node, total_processes
from presel.models.lvlm import Lvlm
from presel.models.memory_trial import MemoryTrial
from presel.models.prefetch import worker_errors
from presel.models.sharding import cluster_environment, last_checkpoint, lightning_strategy
from presel.models.stop_signal import SaveAtSignal, ignore_signals
from presel.models.throughput import Throughput
from presel.models.tune import Tune
from presel.models.tuner import Batch, MakeTuner, Tuner, add_lora
from presel.storage.files import atomic, checked

_log = logging.getLogger(__name__)

# Importing Lightning sets this level to INFO, at which it prints tips and advertisements.
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)


def fine_tune(
    lvlm: Lvlm,
    settings: Tune,
    hardware: Hardware,
    records: Sequence[Record],
    images: Path,
    *,
    folder: Path,
    seed: int,
    workers: int,
    logger: Logger,
    make_tuner: MakeTuner = Tuner,
    by_length: bool = True,
    skip_unanswered: bool = False,
) -> dict[str, Any]:
    """Fine-tunes a model and saves the result, resuming from the last checkpoint in `folder`.

    Args:
        lvlm: The base model.
        settings: Settings of the fine-tune.
        hardware: Devices and processes.
        records: The training set.
        images: Folder of its images.
        folder: Folder for the result (`adapter/` by default) and, during training, the checkpoints.
        seed: Seeds initial weights, batches and dropout.
        workers: Worker processes that prepare batches; the result does not depend on it.
        logger: Lightning logger.
        make_tuner: Makes the Lightning module from model, settings, number of optimizer steps, and seed.
        by_length: Whether the micro-batches of a step group samples of similar length.
        skip_unanswered: Whether records without a response within the model's maximum length are left out.

    Returns:
        Number of optimizer steps, of samples, of samples truncated to the model's maximum length, and of
        records left out since they have no response within it; last training loss; throughput.

    Raises:
        PreselError: If a record has no response within the model's maximum length and is not left out, a
            micro-batch does not fit into the GPU's memory, or the last checkpoint is damaged.
    """
    pl.seed_everything(seed, verbose=False)
    encoder = ConversationEncoder(lvlm)
    samples = _measured(encoder, records, images, lvlm.max_length, skip_unanswered)
    epochs = _planned(samples, settings, seed, by_length)
    base = lvlm.load_model()
    throughput, step_counter = Throughput(base, encoder.image_token), _StepCounter()
    model = _prepared(base, lvlm, settings)

    batches = _Batches(encoder, samples.examples, samples.lengths)
    largest = max((batch for steps in epochs for step in steps for batch in step), key=batches.tokens)
    processes = total_processes(hardware)
    checkpoints = folder / "checkpoints" / f"{hardware.strategy}-{processes}"
    callbacks: list[Callback] = [throughput, MemoryTrial(lambda: batches[largest]), step_counter]
    if hardware.strategy == "single":
        callbacks.append(SaveAtSignal(checkpoints))
    trainer = _trainer(lvlm, settings, hardware, checkpoints, logger, callbacks)
    if hardware.strategy != "single":
        micro_batches = settings.batch_size // settings.micro_batch_size
        epochs = [
            split_across_ranks(steps, trainer.global_rank, processes, micro_batches) for steps in epochs
        ]
    checkpoint, steps_done = _intact_checkpoint(checkpoints)
    loader = _loader(batches, epochs, steps_done, trainer.accumulate_grad_batches, workers)
    steps = sum(map(len, epochs))
    tuner = make_tuner(model, settings, steps, seed)
    with progress("optimizer steps", steps - steps_done) as step_counter.advance:
        _fit(trainer, tuner, loader, checkpoint)
    tuner.save_result(folder)
    if trainer.is_global_zero:
        shutil.rmtree(checkpoints.parent, ignore_errors=True)
    loss = trainer.callback_metrics.get("train/loss")
    return {
        "steps": trainer.global_step,
        "samples": len(samples.ids),
        "truncated": samples.truncated,
        "left_out": len(records) - len(samples.ids),
        "loss": float(loss) if loss is not None else None,
    } | throughput.measured(trainer)


def _planned(samples: "_Measured", settings: Tune, seed: int, by_length: bool) -> list[list[Step]]:
    """The optimizer steps of each epoch."""
    text_only = [not example.images for example in samples.examples]
    return [
        plan_epoch(
            samples.ids,
            samples.lengths,
            samples.response_tokens,
            settings.batch_size,
            settings.micro_batch_size,
            seed,
            epoch,
            text_only=text_only,
            by_length=by_length,
        )
        for epoch in range(settings.epochs)
    ]


def _intact_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The last checkpoint, whose digest is checked, and its step; None and 0 at the start."""
    checkpoint, step = last_checkpoint(folder) or (None, 0)
    # PyTorch does not verify the checksums in a checkpoint. DeepSpeed's checkpoint is a folder.
    if checkpoint is not None and checkpoint.is_file():
        checked(checkpoint)
    return checkpoint, step


def _loader(
    batches: "_Batches", epochs: Sequence[Sequence[Step]], steps_done: int, per_step: int, workers: int
) -> DataLoader[Batch]:
    """Loads the micro-batches, `per_step` to an optimizer step, that follow the first `steps_done` steps."""
    epoch, step = divmod(steps_done, len(epochs[0]))
    done = epoch * sum(map(len, epochs[0])) + step * per_step
    return DataLoader(
        batches,
        sampler=BatchPlan(epochs, done),
        batch_size=None,  # the sampler draws whole batches
        collate_fn=_as_they_are,
        num_workers=workers,
        worker_init_fn=ignore_signals,
    )


def _prepared(base: PreTrainedModel, lvlm: Lvlm, settings: Tune) -> PeftModel:
    """The model with LoRA, compiled and with gradient checkpointing if set."""
    model = add_lora(base, lvlm, settings)
    if settings.compile:
        model.compile(dynamic=True)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def _trainer(
    lvlm: Lvlm,
    settings: Tune,
    hardware: Hardware,
    checkpoints: Path,
    logger: Logger,
    callbacks: Iterable[Callback],
) -> pl.Trainer:
    processes = total_processes(hardware)
    checkpoint = ModelCheckpoint(
        dirpath=checkpoints,
        filename="{step}",
        every_n_train_steps=settings.checkpoint_steps,
        enable_version_counter=False,
    )
    return pl.Trainer(
        # Lightning's `auto` would use devices that `device_for` does not, such as Apple's.
        accelerator=device_for(hardware.accelerator).type,
        strategy=lightning_strategy(hardware, processes, settings.micro_batch_size),
        devices=processes_per_node(hardware),
        num_nodes=hardware.nodes,
        precision=precision_for(hardware, lvlm.dtype),
        # In a Slurm job, Lightning would resume from any `hpc_ckpt_*.ckpt` in the working directory.
        default_root_dir=checkpoints.parents[1],
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.batch_size // settings.micro_batch_size // processes,
        gradient_clip_val=settings.max_grad_norm,
        logger=logger,
        log_every_n_steps=1,
        plugins=[_Checkpoints(), cluster_environment(hardware)],
        callbacks=[checkpoint, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _fit(trainer: pl.Trainer, tuner: Tuner, loader: DataLoader[Batch], checkpoint: Path | None) -> None:
    try:
        with worker_errors():
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
    """Writes checkpoints atomically, also if the folder for temporary files is on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes to a temporary file in the same folder, then renames it."""
        with atomic(Path(path), with_digest=True) as temporary:
            torch.save(checkpoint, temporary)


class _Batches(Dataset[Batch]):
    """Encoded micro-batches, with their rows and the response tokens of their step.

    An empty micro-batch, which only keeps a process in step with the others, encodes the first sample. One of
    text alone gets the shortest sample with an image, without its loss: processes that train together must
    all pass through the vision tower and the projector.
    """

    def __init__(
        self, encoder: ConversationEncoder, examples: Sequence[Example], lengths: Sequence[int]
    ) -> None:
        self._encoder = encoder
        self._examples = examples
        self._lengths = lengths
        with_image = [row for row, example in enumerate(examples) if example.images]
        self._shortest = sorted(with_image, key=lambda row: lengths[row])[:1]

    def __getitem__(self, planned: MicroBatch) -> Batch:
        rows, added = self._encoded(planned)
        batch = self._encoder.batch([self._examples[row] for row in [*rows, *added]])
        batch["labels"][len(rows) :] = IGNORED
        return batch | {
            "rows": torch.tensor(planned.rows, dtype=torch.long),
            "step_tokens": torch.tensor(planned.step_tokens),
        }

    def tokens(self, planned: MicroBatch) -> int:
        """Tokens of an encoded micro-batch, padding and an added sample included."""
        rows, added = self._encoded(planned)
        lengths = [self._lengths[row] for row in [*rows, *added]]
        return len(lengths) * max(lengths)

    def _encoded(self, planned: MicroBatch) -> tuple[list[int], list[int]]:
        """The rows to encode, and those of the added sample, if any."""
        rows = planned.rows or [0]
        return rows, [] if any(self._examples[row].images for row in rows) else self._shortest


def _as_they_are(batch: Any) -> Any:
    return batch


class _Measured(NamedTuple):
    """The samples to train on, their ids, tokens and response tokens, (n,) each; how many are truncated."""

    ids: list[str]
    examples: list[Example]
    lengths: list[int]
    response_tokens: list[int]
    truncated: int


def _measured(
    encoder: ConversationEncoder,
    records: Sequence[Record],
    images: Path,
    max_length: int,
    skip_unanswered: bool,
) -> _Measured:
    """Measures the records; those without a response within the maximum length have no loss to train on."""
    found = _Measured([], [], [], [], 0)
    truncated, left_out = 0, []
    with progress("measuring the training set", len(records)) as advance:
        for record in records:
            example = Example(record.paths(images), record.conversations)
            prompt = encoder.prompt(example)
            if prompt.answered:
                found.ids.append(record.id)
                found.examples.append(example)
                found.lengths.append(len(prompt.ids))
                found.response_tokens.append(sum(label != IGNORED for label in prompt.labels))
                truncated += prompt.truncated
            else:
                left_out.append(record.id)
            advance(1)
    if left_out:
        why = (
            f"{len(left_out)} of {len(records)} samples have no response within lvlm.max_length={max_length} "
            f"tokens, as '{left_out[0]}'"
        )
        if not (skip_unanswered and found.ids):
            raise PreselError(f"{why}; raise lvlm.max_length, or leave them out of the pool")
        _log.warning(f"{why}; they are not trained on, unless lvlm.max_length is raised")
    if truncated:
        _log.info(
            f"  {truncated} of {len(records)} samples are longer than lvlm.max_length={max_length} tokens; "
            "the ends of their answers are cut off"
        )
    return found._replace(truncated=truncated)
