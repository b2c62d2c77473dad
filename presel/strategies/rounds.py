"""Base class of strategies in rounds, and the context that a round selects in."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.errors import PreselError
from presel.strategies.base import SelectionContext, Strategy, checked_choice


@dataclass(frozen=True, kw_only=True)
class RoundContext(SelectionContext):
    """All that a strategy can see in a round.

    Attributes:
        round: The round's number, from 1.
        size: Number of images to select in this round.
        bought: Table of the images whose instructions are bought: id, task, round (0: the reference set),
            what `select_round` returned about them, and their losses (mean over the response's tokens, given
            image and question, in nats) under the last two models that were *not* tuned on them: loss_after
            under the model tuned on all that was bought before the image's round, and loss_before under the
            model of the round before. NaN for the reference set, and without an instruction.
    """

    round: int
    size: int
    bought: pd.DataFrame


@component
class RoundStrategy(Strategy):
    """A strategy that buys in rounds, and learns from each what to buy in the next.

    A round selects images, whose instructions are bought and scored; before the next round is scored, the
    base model is tuned on all that is bought. The reference set and all rounds together are the selection.

    Attributes:
        rounds: Number of rounds that share the budget beside the reference set equally.
    """

    needs: ClassVar[tuple[str, ...]] = ("reference",)

    rounds: Annotated[int, Field(ge=1)] = 4

    @abstractmethod
    def select_round(self, context: RoundContext) -> pd.DataFrame:
        """Selects at least one and at most `context.size` images, none of which is bought.

        Returns:
            Table with the column `id`, and any further columns worth keeping about the images.
        """

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Selects the images of the next round.

        Returns:
            One row per image that is bought or to be bought: the columns of `RoundContext.bought`.

        Raises:
            PreselError: If the round selects none, or more than its share.
        """
        names = [name for name in map(round_name, range(1, self.rounds)) if name in context.results]
        number = len(names) + 1
        reference = context.reference[["id"]].merge(context.pool[["id", "task"]], on="id")
        reference = reference.assign(round=0, loss_before=np.nan, loss_after=np.nan)
        bought = pd.concat([reference, *(context[name] for name in names)], ignore_index=True)
        others = bought_after(number, self.rounds, context.budget - len(reference))
        size = others + len(reference) - len(bought)
        round_context = RoundContext(
            pool=context.pool,
            budget=context.budget,
            # Each round draws its own random numbers.
            rng=context.rng.spawn(number)[-1],
            results=context.results,
            round=number,
            size=size,
            bought=bought.copy(),
        )
        chosen = checked_choice(self.select_round(round_context), f"{type(self).__name__}.select_round")
        chosen = chosen[chosen["selected"]].drop(columns="selected")
        if not min(1, size) <= len(chosen) <= size:
            raise PreselError(
                f"strategy {type(self).__name__} chose {len(chosen)} images in round {number}; "
                f"`select_round` must choose from 1 to `context.size` images, here {size}"
            )
        selected: pd.DataFrame = pd.concat([bought, chosen.assign(round=number)], ignore_index=True)
        return selected


def bought_after(number: int, rounds: int, images: int) -> int:
    """How many of the images that are bought in rounds are bought after the first `number` rounds."""
    return images * number // rounds


def round_name(number: int) -> str:
    """Name under which the result of a round appears in the context of later ones."""
    return f"round_{number}"
