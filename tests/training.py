"""The tiny fine-tune of tests of training."""

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger

from presel.data.llava import Record
from presel.models.fine_tune import fine_tune
from presel.models.hardware import Hardware
from presel.models.loggers import TrainingLogger
from presel.models.lvlm import Lvlm
from presel.models.tune import Tune
from presel.models.tuner import MakeTuner, Tuner

LVLM = Lvlm(path="builtin:digit_llava", template="plain", max_length=256)
CPU = Hardware(accelerator="cpu")


def settings(**changes: object) -> Tune:
    plain = {"lr": 1e-3, "projector_lr": 1e-4, "batch_size": 4, "micro_batch_size": 2, "lora_rank": 4}
    return Tune(**(plain | {"lora_alpha": 8, "checkpoint_steps": 2} | changes))


def tune(
    records: list[Record],
    folder: Path,
    recipe: Tune | None = None,
    *,
    lvlm: Lvlm = LVLM,
    hardware: Hardware = CPU,
    seed: int = 0,
    workers: int = 0,
    logger: Logger | None = None,
    make_tuner: MakeTuner = Tuner,
    skip_unanswered: bool = False,
) -> dict[str, Any]:
    """Fine-tunes on the images that lie beside the folder."""
    return fine_tune(
        lvlm,
        recipe or settings(),
        hardware,
        records,
        folder.parent / "images",
        folder=folder,
        seed=seed,
        workers=workers,
        logger=logger or TrainingLogger().create(folder, folder.name),
        make_tuner=make_tuner,
        skip_unanswered=skip_unanswered,
    )


class PowerCut(CSVLogger):
    """A logger that fails at a step, as a disk or a machine may."""

    def __init__(self, folder: Path, step: int, error: type[BaseException] = ConnectionError) -> None:
        super().__init__(folder, name="", version="")
        self._last = step
        self._error = error

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        if step is not None and step >= self._last:
            raise self._error
