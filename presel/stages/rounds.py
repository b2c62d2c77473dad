"""Stages of the rounds before the last one, for strategies that buy in rounds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd

from presel.errors import PreselError
from presel.stages.instructions import InstructionsStage
from presel.stages.relevance import RelevanceStage
from presel.stages.results import TableStage
from presel.stages.selection import SelectionStage, images_in_budget
from presel.stages.training_set import TrainingSetStage
from presel.stages.tuning import TuningStage
from presel.storage.store import Store
from presel.strategies.rounds import RoundStrategy


@dataclass(frozen=True, kw_only=True)
class RoundStage(SelectionStage):
    """The images that a round selects, once the instructions of those before are bought.

    Leaves `selection.parquet`, in which those before are selected as well.

    Attributes:
        strategy: The strategy that selects.
        bought: The instructions of the reference set and of all rounds before.
    """

    warns_if_underspent: ClassVar[bool] = False

    strategy: RoundStrategy
    bought: tuple[InstructionsStage, ...]

    @property
    def round(self) -> int:
        """The round's number, from 1."""
        return len(self.bought)

    @property
    def label(self) -> str:
        """Names the strategy and the round."""
        return f"{self.name} ({self.strategy.name}, round {self.round})"

    def check_data(self, store: Store) -> None:
        """Checks that the budget has an image for each round.

        Raises:
            PreselError: If not.
        """
        super().check_data(store)
        images = images_in_budget(self.budget, self.pool.size(store))
        reference = store.load(self.reference) if self.reference else ()
        check_rounds(self.budget, images - len(reference), self.strategy.rounds)

    def load(self, folder: Path) -> pd.DataFrame:
        """The images of this round only: id, task, round, and the strategy's columns."""
        table = super().load(folder)
        return table[table["round"] == self.round].reset_index(drop=True)


def check_rounds(budget: float, images: int, rounds: int) -> None:
    """Checks that each round has an image, of those that a budget allows beside the reference set.

    Raises:
        PreselError: If not.
    """
    if rounds > max(1, images):
        raise PreselError(
            f"budget={budget:g} leaves {images} images beside the reference set, too few for "
            f"strategy.rounds={rounds}; raise the one or lower the other"
        )


@dataclass(frozen=True, kw_only=True)
class RoundScoresStage(TableStage):
    """What a round selected, with its losses under the last two models, neither of which was tuned on it.

    Leaves `round_scores.parquet`: id, task, round, the strategy's columns, loss_before, loss_after (see
    `presel.strategies.rounds.RoundContext`).

    Attributes:
        before: Scores of the round's samples by the model before the last tuning.
        after: Scores of them by the model after it, tuned on all that was bought before the round.
        chosen: The round's images.
    """

    name: ClassVar[str] = "round_scores"

    before: RelevanceStage
    after: RelevanceStage
    chosen: RoundStage

    @property
    def label(self) -> str:
        """Names the round."""
        return f"{self.name} (round {self.chosen.round})"

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Joins the losses by image."""
        table = store.load(self.chosen).drop(columns=["selected", "loss_before", "loss_after"])
        for name, stage in (("loss_before", self.before), ("loss_after", self.after)):
            losses = store.load(stage)[["id", "loss_with_question"]]
            table = table.merge(losses.rename(columns={"loss_with_question": name}), on="id", how="left")
        self.write(folder, table)
        return {"images": len(table)}


class Round(NamedTuple):
    """The stages of a round.

    Attributes:
        selection: Selects images.
        instructions: Buys their instructions.
        before: Scores them by the model of the round before.
        after: Scores them by the model tuned on all that was bought before.
        scores: Joins the two, for the rounds to come.
        training_set: All that is bought so far.
        model: The model tuned on it.
    """

    selection: RoundStage
    instructions: InstructionsStage
    before: RelevanceStage
    after: RelevanceStage
    scores: RoundScoresStage
    training_set: TrainingSetStage
    model: TuningStage
