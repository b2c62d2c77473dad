"""Stage `gradients`: the gradient of every sample's loss under the reference model, randomly projected."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from presel.errors import PreselError
from presel.models.lvlm import Lvlm
from presel.selection.feature_rows import Features
from presel.stages.features import VectorsStage
from presel.stages.inference import InferenceStage
from presel.stages.instructions import SamplesStage
from presel.stages.token_batches import encoded_batches, measure, shards_by_length
from presel.stages.tuning import TuningStage
from presel.storage.shards import ArrayShards, Batches
from presel.storage.store import Store

if TYPE_CHECKING:
    from presel.models.conversations import Example


@dataclass(frozen=True, kw_only=True)
class GradientsStage(VectorsStage, InferenceStage[Features]):
    """Projected gradients of samples by `GradientProjector`, `features.npy`, float32, and `ids.parquet`.

    They are not normalized. Those of plain SGD: Adam's update would need its moments, which no tuning keeps.

    Attributes:
        samples: The samples.
        model: The reference model, whose LoRA weights the gradients are with respect to.
        dimension: Dimension of the projected gradients.
        modules: Only LoRA inside modules of this name counts; None for all LoRA.
    """

    name: ClassVar[str] = "gradients"

    samples: SamplesStage
    model: TuningStage
    dimension: int
    modules: str | None

    @property
    def label(self) -> str:
        """Says which samples the gradients are of."""
        return f"{self.name} ({self.samples.purpose})"

    @property
    def lvlm(self) -> Lvlm:
        """The model before any tuning."""
        return self.model.lvlm

    def check_data(self, store: Store) -> None:
        """Checks the name of the modules before any instruction is bought.

        Raises:
            PreselError: If LoRA has no weights in such modules.
        """
        if self.modules is not None and not store.has(self):
            from presel.models.gradients import check_modules

            check_modules(self.lvlm.without_weights(), self.lvlm, self.modules)

    def shards(self, store: Store, folder: Path) -> ArrayShards[int]:
        """The samples, longest first.

        Raises:
            PreselError: If a sample's responses lie beyond the model's maximum length, or a gradient is not
                a number.
        """
        from presel.models.conversations import ConversationEncoder
        from presel.models.gradients import GradientProjector

        lvlm = self.lvlm
        encoder = ConversationEncoder(lvlm)
        examples = self.samples.examples(store)
        lengths, truncated = measure(
            folder,
            examples,
            encoder.prompt,
            lvlm.max_length,
            ids=partial(self.samples.ids, store),
        )

        def project(batches: Batches[int]) -> Iterator[NDArray[np.float32]]:
            projector = GradientProjector(
                lvlm, store.load(self.model), self.runtime.hardware, self.dimension, self.modules
            )
            for rows, batch in encoded_batches(batches, examples, encoder.batch, self.runtime.workers):
                gradients = projector.project(batch).numpy()
                _check_finite(gradients, [examples[row] for row in rows])
                yield gradients

        return shards_by_length(
            ArrayShards[int],
            folder,
            lengths,
            self.runtime.batch_tokens,
            label="computing gradients",
            name=lambda row: examples[row].name,
            compute=project,
            measured={"truncated": truncated},
        )

    def join(self, store: Store, folder: Path, shards: ArrayShards[int]) -> dict[str, Any]:
        """Joins the shards into one file."""
        ids = self.samples.ids(store)
        dimensions = self.write(folder, ids, shards.files, np.argsort(shards.items))
        return {"samples": len(ids), **shards.measured, "dimensions": dimensions}


def _check_finite(gradients: NDArray[np.float32], examples: "list[Example]") -> None:
    broken = ~np.isfinite(gradients).all(axis=1)
    if broken.any():
        raise PreselError(
            f"{examples[int(broken.argmax())].name}: the gradient of its loss under the reference model is "
            "not a number; compute more precisely (lvlm.dtype=float32, or bfloat16 instead of float16), or "
            "lower tune.lr"
        )
