"""Stage `selection`: a strategy chooses the images to buy instructions for."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from presel.errors import PreselError
from presel.stages.pool import Pool
from presel.storage.files import write_table
from presel.storage.stage import Stage
from presel.storage.store import Store
from presel.strategies.base import Given, Strategy

# What a strategy can need that rests on the reference set's instructions.
PAID = frozenset({"reference", "relevance"})


@dataclass(frozen=True)
class SelectionStage(Stage[pd.DataFrame]):
    """D_S, the images to instruct, the reference set included where the strategy used one.

    Leaves `selection.parquet`: one row an image of the pool, with `selected` and what the strategy
    says about it.

    Attributes:
        strategy: Who chooses.
        pool: What it chooses from.
        budget: Up to 1 a share of the pool, above 1 a number of images; the reference set counts.
        seed: Decides every draw.
        needed: The stages the strategy declared it needs, by name.
    """

    name: ClassVar[str] = "selection"

    strategy: Strategy
    pool: Pool
    budget: float
    seed: int
    needed: Mapping[str, Stage[Any]]

    @property
    def label(self) -> str:
        """Says who chooses."""
        return f"{self.name} ({self.strategy.name})"

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Lets the strategy choose, and checks its choice.

        Raises:
            PreselError: If the budget cannot be met or the choice breaks it.
        """
        pool = store.load(self.pool)
        budget = len(pool) if self.strategy.whole_pool else images_in_budget(self.budget, len(pool))
        results = {name: store.load(stage) for name, stage in self.needed.items()}
        given = Given(pool.copy(), budget, np.random.default_rng(self.seed), results)
        started = time.perf_counter()
        choice = self.strategy.select(given)
        seconds = time.perf_counter() - started
        if "selected" not in choice:
            choice = choice.assign(selected=True)
        paid = {name for need in PAID & results.keys() for name in results[need]["id"]}
        self._check(choice.loc[choice["selected"], "id"], pool["id"], paid, budget)
        table = pool[["id", "task"]].merge(choice.drop(columns="task", errors="ignore"), on="id", how="left")
        table["selected"] = table["selected"].eq(True)
        write_table(folder / "selection.parquet", table)
        return {"selected": int(table["selected"].sum()), "budget": budget, "seconds": round(seconds, 3)}

    def load(self, folder: Path) -> pd.DataFrame:
        """The chosen images only: id, task, and what the strategy says."""
        table = pd.read_parquet(folder / "selection.parquet")
        return table[table["selected"]].reset_index(drop=True)

    def _check(self, chosen: pd.Series, pool: pd.Series, paid: set[str], budget: int) -> None:
        name = type(self.strategy).__name__
        if not 1 <= len(chosen) <= budget:
            raise PreselError(
                f"strategy {name} chose {len(chosen)} images where the budget is {budget}; "
                "`select` must choose from 1 to `given.budget` images"
            )
        requested = len(paid.union(chosen))
        if requested > budget:
            raise PreselError(
                f"strategy {name} chose {len(chosen)} images beside the reference set, {requested} in all, "
                f"where the budget is {budget}; the reference set counts in it"
            )
        if chosen.duplicated().any():
            raise PreselError(f"strategy {name} chose image '{chosen[chosen.duplicated()].iloc[0]}' twice")
        # Not `isin`, which takes forty times as long on strings.
        unknown = chosen[pd.Index(pool).get_indexer(chosen) < 0]
        if len(unknown):
            raise PreselError(f"strategy {name} chose '{unknown.iloc[0]}', which is not in the pool")


def images_in_budget(budget: float, pool_size: int) -> int:
    """Turns a budget into a number of images.

    Args:
        budget: Up to 1 a share of the pool, above 1 a number of images.
        pool_size: Usable images in the pool.

    Raises:
        PreselError: If that is no image at all, or more than there are.
    """
    if budget > 1 and budget != int(budget):
        raise PreselError(
            f"budget={budget:g} is neither a share of the pool nor a whole number of images; set a share up "
            "to 1 (0.15) or a number of images (500)"
        )
    images = round(budget * pool_size) if budget <= 1 else int(budget)
    if images < 1:
        raise PreselError(
            f"budget={budget:g} buys no instruction: the pool has {pool_size} images; set a share above 0 "
            "(0.15) or a number of images (500)"
        )
    if images > pool_size:
        raise PreselError(
            f"budget={budget:g} is above the pool's {pool_size} images; set a share up to 1 (0.15) or a "
            "smaller number of images"
        )
    return images
