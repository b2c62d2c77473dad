"""Tries the largest micro-batch before training, so that a lack of GPU memory shows at once."""

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor

from presel.errors import PreselError
from presel.models.inputs import Inputs


class MemoryTrial(pl.Callback):
    """Runs one forward and backward pass on a GPU; weights, optimizer and random state do not change.

    The optimizer's state, allocated at the first step, is not part of the trial. DeepSpeed, which allows no
    backward pass but its own, is not tried.
    """

    def __init__(self, make_batch: Callable[[], Inputs]) -> None:
        """Takes a function that encodes the micro-batch with the most tokens, padding included."""
        self._make_batch = make_batch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tries the micro-batch in every process."""
        device = trainer.strategy.root_device
        if device.type == "cuda" and not isinstance(trainer.strategy, pl.strategies.DeepSpeedStrategy):
            try_micro_batch(pl_module, self._make_batch(), device)


def try_micro_batch(module: pl.LightningModule, batch: Inputs, device: torch.device) -> None:
    """Runs a forward and backward pass and discards the gradients.

    Raises:
        PreselError: If it does not fit into the device's memory.
    """
    rows, length = batch["input_ids"].shape
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            with module.trainer.precision_plugin.train_step_context():
                loss = module.training_step(batch.to(device), 0)
            assert isinstance(loss, Tensor)
            loss.backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError as error:
            raise PreselError(
                f"a micro-batch of {rows} samples of up to {length} tokens does not fit into the device's "
                "memory; lower tune.micro_batch_size, set tune.gradient_checkpointing=true, or use more or "
                "larger devices"
            ) from error
    module.zero_grad(set_to_none=True)
