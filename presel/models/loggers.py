"""Where training metrics go: any logger of PyTorch Lightning's."""

import logging
import os
import sys
from dataclasses import field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from presel.component import component
from presel.errors import PreselError

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

_log = logging.getLogger(__name__)


@component
class TrainingLogger:
    """Makes the logger of each fine-tune.

    Attributes:
        kind: The logger's class, a subclass of `pytorch_lightning.loggers.Logger`.
        arguments: Its arguments; in a text, `{folder}` stands for the folder of the fine-tune, `{name}` for
            its name.
    """

    kind: str = "pytorch_lightning.loggers.CSVLogger"
    arguments: dict[str, Any] = field(default_factory=lambda: {"save_dir": "{folder}", "name": "metrics"})

    def check(self) -> None:
        """Makes sure, before any work, that the logger can be made.

        Raises:
            PreselError: If the class is no logger, its package is not installed, or it refuses the arguments.
        """
        with TemporaryDirectory() as scratch:
            self._make(Path(scratch), "check")

    def create(self, folder: Path, name: str) -> "Logger":
        """A logger that writes into `folder` and calls the run `name`."""
        if self._defaults:
            _log.warning("Weights & Biases is offline: WANDB_API_KEY is not set; `wandb sync` uploads runs")
        return self._make(folder, name)

    def close(self) -> None:
        """Ends the run of Weights & Biases; otherwise the next fine-tune of this process would join it."""
        if wandb := sys.modules.get("wandb"):
            wandb.finish()

    @property
    def _defaults(self) -> dict[str, Any]:
        """Without a key, Weights & Biases would ask for one."""
        without_key = self.kind.endswith(".WandbLogger") and "WANDB_API_KEY" not in os.environ
        return {"offline": True} if without_key and "offline" not in self.arguments else {}

    def _make(self, folder: Path, name: str) -> "Logger":
        from pytorch_lightning.loggers import Logger

        module, _, attribute = self.kind.rpartition(".")
        try:
            kind = getattr(import_module(module), attribute)
            if not (isinstance(kind, type) and issubclass(kind, Logger)):
                raise TypeError("it is no subclass of pytorch_lightning.loggers.Logger")
            arguments = self._defaults | self.arguments
            for key, value in arguments.items():
                if isinstance(value, str):
                    arguments[key] = value.replace("{folder}", str(folder)).replace("{name}", name)
            return kind(**arguments)
        # Loggers, and the packages behind them, raise anything.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".replace("\n", " ")
            raise PreselError(
                f"logger.kind={self.kind} cannot be used ({reason}); install its package, correct "
                "logger.arguments, or set logger=csv"
            ) from error
