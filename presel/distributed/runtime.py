"""Where and how stages run: devices, worker processes, loggers, batch sizes."""

from dataclasses import dataclass, field

from presel.models.hardware import Hardware
from presel.models.loggers import TrainingLogger
from presel.storage.executor import Executor


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What the stages of a run share; of all this only the kind of device decides results.

    Attributes:
        hardware: Devices and processes that models run on.
        workers: Worker processes that decode images and prepare batches, on each node.
        batch_tokens: Tokens of a forward pass that scores or encodes samples, padding counted.
        logger: Where training metrics go.
        executor: Computes the shards of stages.
    """

    hardware: Hardware = field(default_factory=Hardware)
    workers: int = field(default=0, compare=False)
    batch_tokens: int = field(default=8192, compare=False)
    logger: TrainingLogger = field(default_factory=TrainingLogger, compare=False)
    executor: Executor = field(default_factory=Executor, compare=False)
