"""Where training metrics go."""

import os
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from presel.component import component
from presel.errors import PreselError

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


class LoggerFactory(ABC):
    """Base of what makes the logger of one fine-tune."""

    @abstractmethod
    def check(self) -> None:
        """Makes sure, before any work, that there will be a logger."""

    @abstractmethod
    def create(self, folder: Path, name: str) -> "Logger":
        """A logger that writes into `folder` and calls the run `name`."""

    @abstractmethod
    def close(self) -> None:
        """Ends the run that `create` began."""


@component
class Csv(LoggerFactory):
    """A file `metrics.csv` beside the adapter, one for each time the fine-tune was started."""

    def check(self) -> None:
        """There is nothing to check."""

    def create(self, folder: Path, name: str) -> "Logger":
        """Writes `metrics/version_<n>/metrics.csv` in the folder."""
        from pytorch_lightning.loggers import CSVLogger

        return CSVLogger(folder, name="metrics")

    def close(self) -> None:
        """There is nothing to end."""


@component
class Wandb(LoggerFactory):
    """Weights & Biases; offline, to be synchronised later, unless `WANDB_API_KEY` is set.

    Attributes:
        project: Project the runs are filed under.
    """

    project: str = "presel"

    def check(self) -> None:
        """Makes sure that W&B is installed.

        Raises:
            PreselError: If not.
        """
        if find_spec("wandb") is None:
            raise PreselError(
                'logger=wandb: wandb is not installed; run pip install "presel[wandb]", or set logger=csv'
            )

    def create(self, folder: Path, name: str) -> "Logger":
        """Starts a run."""
        from pytorch_lightning.loggers import WandbLogger

        return WandbLogger(
            project=self.project, name=name, save_dir=folder, offline="WANDB_API_KEY" not in os.environ
        )

    def close(self) -> None:
        """Ends the run; otherwise the next fine-tune of this process would go into it."""
        import wandb

        wandb.finish()
