"""Stage `model`: fine-tunes the vision-language model on instructions, reference or final."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from presel.models.loggers import LoggerFactory
from presel.models.lvlm import Lvlm
from presel.models.tune import Hardware, Tune
from presel.stages.instructions import InstructionsStage
from presel.store import Stage, Store, T_co

if TYPE_CHECKING:
    from presel.models.tuner import MakeTuner


@dataclass(frozen=True)
class FineTuneStage(Stage[T_co]):
    """What every stage that fine-tunes the vision-language model rests on.

    Attributes:
        instructions: The training set.
        lvlm: The base model.
        tune: How it is tuned.
        hardware: Where.
        seed: Decides initial weights, batches and dropout.
        workers: Processes that prepare batches.
        logger: Where training metrics go.
    """

    instructions: InstructionsStage
    lvlm: Lvlm
    tune: Tune
    hardware: Hardware
    seed: int
    workers: int = field(compare=False)
    logger: LoggerFactory = field(compare=False)

    def fine_tune(self, store: Store, folder: Path, make_tuner: "MakeTuner") -> dict[str, Any]:
        """Tunes the model, from the last checkpoint on if there is one; returns what was measured."""
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
                make_tuner,
            )
        finally:
            self.logger.close()


@dataclass(frozen=True)
class TuningStage(FineTuneStage[Path]):
    """A PEFT adapter in `adapter/`."""

    name: ClassVar[str] = "model"
    version: ClassVar[int] = 2

    @property
    def label(self) -> str:
        """Says on which instructions the model is tuned."""
        return f"{self.name} ({self.instructions.what_for})"

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Tunes the model."""
        from presel.models.tuner import Tuner

        return self.fine_tune(store, folder, Tuner)

    def load(self, folder: Path) -> Path:
        """The adapter's folder."""
        return folder / "adapter"
