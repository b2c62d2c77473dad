"""Stage `selection`: a strategy selects the images to buy instructions for."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa

from presel.errors import PreselError
from presel.stages.instructions import InstructionsStage
from presel.stages.pool import Pool
from presel.stages.reference import ReferenceStage
from presel.stages.results import TableStage
from presel.storage.stage import Stage, upstream
from presel.storage.store import Store
from presel.strategies.base import SelectionContext, Strategy, checked_choice

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SelectionStage(TableStage):
    """The images to buy instructions for, the reference set included if the strategy used one.

    Leaves `selection.parquet`: one row per image of the pool, with `selected` and the strategy's columns.

    Attributes:
        strategy: The strategy that selects.
        pool: What it selects from.
        budget: Up to 1 a share of the pool, above 1 a number of images; the reference set counts.
        seed: Seed of the strategy's random number generator.
        needed: The stages whose results the strategy declared in `needs`, by name.
    """

    name: ClassVar[str] = "selection"
    # Whether to warn if fewer images than the budget are chosen.
    warns_if_underspent: ClassVar[bool] = True

    strategy: Strategy
    pool: Pool
    budget: float
    seed: int
    needed: Mapping[str, Stage[Any]]

    @property
    def label(self) -> str:
        """Names the strategy."""
        return f"{self.name} ({self.strategy.name})"

    @property
    def paid(self) -> list[Stage[pd.DataFrame]]:
        """The images that count in the budget: those whose instructions, or which themselves, are used.

        Instructions do not count for strategies that read those of the whole pool.
        """
        bought = [stage.chosen for stage in upstream(self) if isinstance(stage, InstructionsStage)]
        used = [self.needed.get("reference"), *(bought if self.pool not in bought else [])]
        return [stage for stage in used if stage is not None]

    @property
    def reference(self) -> ReferenceStage | None:
        """The reference set, if it counts in the budget."""
        return next((stage for stage in self.paid if isinstance(stage, ReferenceStage)), None)

    def check_data(self, store: Store) -> None:
        """Checks the budget against the pool and the reference set.

        Raises:
            PreselError: If it cannot be met, or does not hold the reference set that the strategy uses.
        """
        budget = images_in_budget(self.budget, self.pool.size(store))
        if self.reference:
            check_budget(self.budget, budget, len(store.load(self.reference)), self.reference.share)

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Runs the strategy and checks its selection.

        Raises:
            PreselError: If the budget cannot be met, or the selection exceeds it.
        """
        pool = store.load(self.pool)
        budget = images_in_budget(self.budget, len(pool))
        results = {name: store.load(stage) for name, stage in self.needed.items()}
        context = SelectionContext(
            pool=pool.copy(), budget=budget, rng=np.random.default_rng(self.seed), results=results
        )
        started = time.perf_counter()
        choice = checked_choice(self.strategy.select(context), f"{type(self.strategy).__name__}.select")
        seconds = time.perf_counter() - started
        paid = {name for stage in self.paid for name in store.load(stage)["id"]}
        chosen = choice.loc[choice["selected"], "id"]
        self._check(chosen, pool["id"], paid, budget)
        if len(chosen) < budget and self.warns_if_underspent:
            _log.warning(
                f"strategy={self.strategy.name} chose {len(chosen):,} images where the budget is {budget:,}; "
                "`presel run --help strategy` says what it leaves out"
            )
        table = pool[["id", "task"]].merge(choice.drop(columns="task", errors="ignore"), on="id", how="left")
        table["selected"] = table["selected"].eq(True)
        try:
            self.write(folder, table)
        except pa.ArrowException as error:
            raise PreselError(
                f"the table of {type(self.strategy).__name__}.select cannot be stored ({error.args[-1]}); "
                "give each column one type: numbers, text or booleans"
            ) from error
        return {"selected": int(table["selected"].sum()), "budget": budget, "seconds": round(seconds, 3)}

    def load(self, folder: Path) -> pd.DataFrame:
        """The selected images only: id, task, and the strategy's columns."""
        table = super().load(folder)
        return table[table["selected"]].reset_index(drop=True)

    def _check(self, chosen: pd.Series, pool: pd.Series, paid: set[str], budget: int) -> None:
        name = type(self.strategy).__name__
        if not 1 <= len(chosen) <= budget:
            raise PreselError(
                f"strategy {name} chose {len(chosen)} images where the budget is {budget}; "
                "`select` must choose from 1 to `context.budget` images"
            )
        requested = len(paid.union(chosen))
        if requested > budget:
            raise PreselError(
                f"strategy {name} chose {len(chosen)} images beside the reference set, {requested} in all, "
                f"where the budget is {budget}; the reference set counts in it, and whatever else was bought"
            )
        # Not `isin`, which takes forty times as long on strings.
        unknown = chosen[pd.Index(pool).get_indexer(chosen) < 0]
        if len(unknown):
            raise PreselError(f"strategy {name} chose '{unknown.iloc[0]}', which is not in the pool")


def check_budget(budget: float, images: int, reference: int, share: float) -> None:
    """Checks that the reference set (`share` of each task) fits into a budget of `images` images.

    Raises:
        PreselError: If not.
    """
    if reference > images:
        raise PreselError(
            f"budget={budget:g} is {images} images, fewer than the {reference} of the reference set "
            f"(reference.share={share:g} of each task); raise the one or lower the other"
        )


def images_in_budget(budget: float, pool_size: int) -> int:
    """Turns a budget, up to 1 a share of the pool and above 1 a number of images, into a number of images.

    Raises:
        PreselError: If that is not a whole number, no image at all, or more than the pool has.
    """
    if budget > 1 and budget != int(budget):
        raise PreselError(
            f"budget={budget:g} is neither a share of the pool nor a whole number of images; set a share up "
            "to 1 (0.15) or a number of images (500)"
        )
    images = round(budget * pool_size) if budget <= 1 else int(budget)
    if images < 1:
        raise PreselError(
            f"budget={budget:g} buys no instruction: the pool has {pool_size} images; set a larger share, or "
            f"a number of images (up to {pool_size})"
        )
    if images > pool_size:
        raise PreselError(
            f"budget={budget:g} is above the pool's {pool_size} images; set a share up to 1 (0.15) or a "
            "smaller number of images"
        )
    return images
