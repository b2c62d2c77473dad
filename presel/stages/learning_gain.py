"""Stages `reference_half`, `learning_gain`: how much tuning on half of the reference set helps."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from presel.errors import PreselError
from presel.stages.instructions import InstructionsStage, SamplesStage
from presel.stages.relevance import RelevanceStage
from presel.stages.results import TableStage
from presel.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ReferenceHalfStage(SamplesStage):
    """One of two random halves of the reference set, in each of which a task has half of its samples.

    Of an odd number one half has one more. A task with a single sample is in one half only; its gain is what
    the other tasks teach the model about it.

    Attributes:
        instructions: Those of the reference set; no further ones are bought.
        half: Which half, 1 or 2.
        seed: Seed of the division, which does not depend on the order of the pool's rows.
    """

    name: ClassVar[str] = "reference_half"

    instructions: InstructionsStage
    half: int
    seed: int

    def compute(self, store: Store, folder: Path) -> dict[str, int]:
        """Shuffles the samples of each task, and deals them to the halves in turn, task after task.

        Raises:
            PreselError: If there is a single sample.
        """
        records = store.load(self.instructions)
        if len(records) < 2:
            raise PreselError(
                f"the reference set has a single sample ('{records[0].id}'), where learning gains need two "
                "halves; raise reference.share"
            )
        pool = store.load(self.pool)
        samples = pool[pool["id"].isin([record.id for record in records])]
        # Another stream than that which drew the reference set.
        generator = np.random.default_rng([self.seed, 1])
        dealt: list[str] = []
        for _, ids in samples.groupby("task", sort=True)["id"]:
            dealt += generator.permutation(np.sort(ids.to_numpy(dtype=str))).tolist()
        chosen = set(dealt[self.half - 1 :: 2])
        self.write(folder, [record for record in records if record.id in chosen])
        return {"samples": len(chosen)}


@dataclass(frozen=True, kw_only=True)
class LearningGainStage(TableStage):
    """Loss of every reference sample before tuning, and under a model tuned on the half without the sample.

    Leaves `learning_gain.parquet`: id, task, loss_base, loss_tuned, n_tokens. Losses are means over the
    response's tokens given image and question, in nats; see `presel.importance.learning_gains`.

    Attributes:
        untuned: Losses of the reference set under the base model.
        first: Losses of the first half under the model tuned on the second.
        second: Losses of the second half under the model tuned on the first.
    """

    name: ClassVar[str] = "learning_gain"

    untuned: RelevanceStage
    first: RelevanceStage
    second: RelevanceStage

    def compute(self, store: Store, folder: Path) -> dict[str, int]:
        """Joins the losses by sample."""
        loss = "loss_with_question"
        tuned = pd.concat([store.load(self.first), store.load(self.second)])
        base = store.load(self.untuned)[["id", loss, "n_tokens"]].rename(columns={loss: "loss_base"})
        table = base.merge(tuned[["id", loss]].rename(columns={loss: "loss_tuned"}), on="id")
        table = table.merge(store.load(self.untuned.instructions.pool)[["id", "task"]], on="id")
        self.write(folder, table[["id", "task", "loss_base", "loss_tuned", "n_tokens"]])
        return {"samples": len(table)}
