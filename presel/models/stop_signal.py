"""A checkpoint when a training by one process is asked to stop, so that a preempted job loses no step."""

import logging
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from presel.console.signals import first_signal

_log = logging.getLogger(__name__)


class SaveAtSignal(Callback):
    """Lets the first Ctrl-C or SIGTERM wait for the end of the optimizer step, and saves a checkpoint then.

    Not Lightning's `OnExceptionCheckpoint`, which may save in the middle of a step. Processes that train
    together would get the signal in different steps; they go on from their last regular checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        """Takes the folder of the checkpoints."""
        self._folder = folder
        self._handlers = ExitStack()
        self._received: signal.Signals | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the place of Lightning's handlers, which end the training after the current micro-batch."""
        self._step = trainer.global_step
        self._handlers.enter_context(first_signal(self._receive))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Saves and raises the signal again, if this micro-batch is the last one of its step."""
        if self._received is not None and trainer.global_step > self._step:
            trainer.save_checkpoint(self._folder / f"step={trainer.global_step}.ckpt")
            _log.info("checkpoint at step %d", trainer.global_step)
            signal.raise_signal(self._received)
        self._step = trainer.global_step

    def on_train_end(self, *_: Any) -> None:
        """Gives the signals back."""
        self._handlers.close()

    def on_exception(self, *_: Any) -> None:
        """Gives the signals back."""
        self._handlers.close()

    def _receive(self, number: signal.Signals) -> None:
        self._received = number


def ignore_signals(_: int) -> None:
    """For worker processes: terminals and schedulers signal them too, and the main one needs its batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
