"""Stage `model`: fine-tunes the vision-language model on instructions, reference or final."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from presel.distributed.stage import ParallelStage
from presel.errors import PreselError
from presel.models.hardware import check_distribution, precision_for
from presel.models.lvlm import Lvlm
from presel.models.tune import Tune
from presel.stages.instructions import SamplesStage
from presel.storage.stage import T_co
from presel.storage.store import Store

if TYPE_CHECKING:
    from presel.models.tuner import MakeTuner


@dataclass(frozen=True, kw_only=True)
class FineTuneStage(ParallelStage[T_co]):
    """Base of the stages that fine-tune the vision-language model.

    Attributes:
        instructions: The training set.
        lvlm: The base model.
        tune: Hyperparameters.
        seed: Seed of initial weights, batches and dropout.
        by_length: Whether the micro-batches of an optimizer step hold samples of similar length.
        skip_unanswered: Whether samples without a response within the model's maximum length are left out;
            those that are scored afterwards must have one.
    """

    by_length: ClassVar[bool] = True

    instructions: SamplesStage
    lvlm: Lvlm
    tune: Tune
    seed: int
    skip_unanswered: bool = field(default=False, compare=False)

    def check(self, store: Store) -> None:
        """Checks model, logger and hardware.

        Raises:
            PreselError: If the training cannot run with these settings.
        """
        super().check(store)
        self.lvlm.check()
        self.runtime.logger.check()
        check_distribution(self.runtime.hardware, self.tune.batch_size, self.tune.micro_batch_size)
        if self.precision == "32-true" and self.lvlm.dtype != "float32":
            raise PreselError(
                f"trainer.precision=32-true: lvlm.dtype={self.lvlm.dtype} loads weights that do not mix with "
                "trained ones in float32; set trainer.precision=auto, or lvlm.dtype=float32"
            )

    @property
    def precision(self) -> str:
        """Lightning's name of the training precision."""
        return precision_for(self.runtime.hardware, self.lvlm.dtype)

    def settings(self) -> dict[str, Any]:
        """Adds the training precision, which depends on the machine unless it is set.

        DeepSpeed rounds the trained weights to it as well.
        """
        return super().settings() | {
            "precision": self.precision,
            "weights_rounded": self.runtime.hardware.strategy == "deepspeed_zero3",
        }

    def make_tuner(self, store: Store) -> "MakeTuner":
        """Makes the Lightning module that trains the model."""
        from presel.models.tuner import Tuner

        return Tuner

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Tunes the model, resuming from the last checkpoint if there is one; returns measurements."""
        if self.runtime.hardware.strategy == "single":
            return self.work(store, folder)
        return self.work_in_processes(store, folder)

    def work(self, store: Store, folder: Path, rank: int = 0, processes: int = 1) -> dict[str, Any]:
        """Tunes the model, together with the other processes if there are several."""
        from presel.models.fine_tune import fine_tune

        try:
            return fine_tune(
                self.lvlm,
                self.tune,
                self.runtime.hardware,
                store.load(self.instructions),
                self.instructions.pool.files(store).images,
                folder=folder,
                seed=self.seed,
                workers=self.runtime.workers,
                logger=self.runtime.logger.create(folder, f"{self.label} {self.key}"),
                make_tuner=self.make_tuner(store),
                by_length=self.by_length,
                skip_unanswered=self.skip_unanswered,
            )
        finally:
            self.runtime.logger.close()


@dataclass(frozen=True, kw_only=True)
class TuningStage(FineTuneStage[Path]):
    """A PEFT adapter in `adapter/`."""

    name: ClassVar[str] = "model"
    version: ClassVar[int] = 3

    @property
    def label(self) -> str:
        """Says which instructions the model is tuned on."""
        return f"{self.name} ({self.instructions.purpose})"

    def load(self, folder: Path) -> Path:
        """The adapter's folder."""
        return folder / "adapter"
