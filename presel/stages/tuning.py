"""Stage `model`: fine-tunes the vision-language model on instructions, reference or final."""

from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from presel.distributed.stage import ParallelStage
from presel.errors import PreselError
from presel.models.hardware import Hardware
from presel.models.loggers import TrainingLogger
from presel.models.lvlm import Lvlm
from presel.models.tune import Tune
from presel.stages.instructions import InstructionsStage
from presel.storage.stage import T_co
from presel.storage.store import Store

if TYPE_CHECKING:
    from presel.models.tuner import MakeTuner


@dataclass(frozen=True)
class FineTuneStage(ParallelStage[T_co]):
    """What every stage that fine-tunes the vision-language model rests on.

    Attributes:
        instructions: The training set.
        lvlm: The base model.
        tune: How it is tuned.
        hardware: Where.
        seed: Decides initial weights, batches and dropout.
        workers: Processes that prepare batches.
        logger: Where training metrics go.
        by_length: Whether the micro-batches of an optimizer step hold samples of like length.
    """

    by_length: ClassVar[bool] = True

    instructions: InstructionsStage
    lvlm: Lvlm
    tune: Tune
    hardware: Hardware
    seed: int
    workers: int = field(compare=False)
    logger: TrainingLogger = field(compare=False)

    def check(self) -> None:
        """Makes sure that there are such a model and logger, and that the tuning can be spread as asked.

        Raises:
            PreselError: If not.
        """
        from presel.models.hardware import check_hardware

        self.lvlm.check()
        self.logger.check()
        check_hardware(self.hardware, self.tune.batch_size, self.tune.micro_batch_size)
        if self.precision == "32-true" and self.lvlm.dtype != "float32":
            raise PreselError(
                f"trainer.precision=32-true: lvlm.dtype={self.lvlm.dtype} loads weights that do not mix with "
                "trained ones in float32; set trainer.precision=auto, or lvlm.dtype=float32"
            )

    @property
    def precision(self) -> str:
        """Lightning's name of the precision of training."""
        from presel.models.hardware import precision_for

        return precision_for(self.hardware, self.lvlm.dtype)

    def settings(self) -> dict[str, Any]:
        """Adds the precision of training, which the machine decides unless it is set.

        DeepSpeed rounds the trained weights to it as well.
        """
        return super().settings() | {
            "precision": self.precision,
            "weights_rounded": self.hardware.strategy == "deepspeed_zero3",
        }

    @abstractmethod
    def make_tuner(self, store: Store) -> "MakeTuner":
        """What trains the model."""

    def fine_tune(self, store: Store, folder: Path) -> dict[str, Any]:
        """Tunes the model, from the last checkpoint on if there is one; returns what was measured."""
        if self.hardware.strategy == "single":
            return self.work(store, folder)
        return self.work_in_processes(store, folder)

    def work(self, store: Store, folder: Path, rank: int = 0, processes: int = 1) -> dict[str, Any]:
        """Tunes the model, together with the other processes if there are any."""
        from presel.models.tuner import tune

        try:
            return tune(
                self.lvlm,
                self.tune,
                self.hardware,
                store.load(self.instructions),
                self.instructions.pool.files(store).images,
                folder,
                self.seed,
                self.workers,
                self.logger.create(folder, f"{self.label} {self.key}"),
                self.make_tuner(store),
                self.by_length,
            )
        finally:
            self.logger.close()


@dataclass(frozen=True)
class TuningStage(FineTuneStage[Path]):
    """A PEFT adapter in `adapter/`."""

    name: ClassVar[str] = "model"
    version: ClassVar[int] = 3

    @property
    def label(self) -> str:
        """Says on which instructions the model is tuned."""
        return f"{self.name} ({self.instructions.what_for})"

    def make_tuner(self, store: Store) -> "MakeTuner":
        """The plain tuner."""
        from presel.models.tuner import Tuner

        return Tuner

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Tunes the model."""
        return self.fine_tune(store, folder)

    def load(self, folder: Path) -> Path:
        """The adapter's folder."""
        return folder / "adapter"
