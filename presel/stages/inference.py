"""Base of the stages that score or answer with the vision-language model, without training it."""

from typing import TYPE_CHECKING, Any

from presel.distributed.stage import ShardedStage
from presel.models.hardware import inference_settings
from presel.storage.stage import T_co
from presel.storage.store import Store

if TYPE_CHECKING:
    from presel.models.lvlm import Lvlm


class InferenceStage(ShardedStage[T_co]):
    """A sharded stage that runs the model `lvlm`, a field or a property of each subclass, as it is tuned."""

    if TYPE_CHECKING:

        @property
        def lvlm(self) -> "Lvlm":
            """The model before any tuning."""

    def settings(self) -> dict[str, Any]:
        """Adds the precision that the model computes in, if it is not that of its weights."""
        return super().settings() | inference_settings(self.runtime.hardware, self.lvlm.dtype)

    def check(self, store: Store) -> None:
        """Checks devices and model."""
        super().check(store)
        self.lvlm.check()
