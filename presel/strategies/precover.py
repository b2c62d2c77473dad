"""PreCover: images that cover their task, chosen from images alone."""

from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.importance import Relevance
from presel.selection.arrays import IntVector
from presel.selection.coverage import facility_location, nearest_to_centers
from presel.selection.feature_rows import FeatureRows
from presel.selection.threads import for_each_task
from presel.strategies.base import SelectionContext, Strategy
from presel.strategies.task_budgets import split_over_tasks, weights_by_pool, weights_by_relevance


@component
class PreCover(Strategy):
    """Coverage of each task in place of PreSel's central images of its clusters.

    With budgets by `size` or `uniform` no instruction is read before the selection and no model tuned: all
    images of the budget are chosen, and there is no reference set. With budgets by `relevance` the reference
    set is bought first, as in PreSel: it counts in the budget, is part of the selection, and what it covers
    need not be covered again.

    Attributes:
        budgets: How tasks share the budget: equally (`uniform`), by their `size`, or by the `relevance` of
            instructions (eq. 5).
        picks: Which images of a task are taken: those of greedy `facility_location`, those nearest to the
            centers of as many clusters as there are images to take (`kmeans`), or `random` ones.
        center: Whether the mean of the pool's features is subtracted before they are L2-normalized.
        score: Relevance of a sample, see `presel.importance.relevance_scores`.
        tau: Temperature of the task weights (eq. 5); None for 1/sqrt(number of tasks).
    """

    budgets: Literal["size", "uniform", "relevance"] = "uniform"
    picks: Literal["random", "kmeans", "facility_location"] = "facility_location"
    center: bool = True
    score: Relevance = "ratio"
    tau: Annotated[float, Field(gt=0)] | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Features for all picks but random ones, and the reference set only where budgets rest on it."""
        features = () if self.picks == "random" else ("features",)
        return (*features, "reference", "relevance") if self.budgets == "relevance" else features

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Spends exactly the budget.

        Returns:
            One row per image: id, task, selected, why (`reference`, or the setting `picks`), rank (from 1 in
            the order of choosing in the task), the task's weight and budget.
        """
        images = context.pool[["id", "task"]].sort_values(["task", "id"], ignore_index=True)
        bought = np.zeros(len(images), dtype=np.bool_)
        if self.budgets == "relevance":
            bought = images["id"].isin(context.reference["id"]).to_numpy()
            weights = weights_by_relevance(context, self.score, self.tau)
        else:
            weights = weights_by_pool(context, self.budgets)
        budgets = split_over_tasks(weights, images["task"][~bought], context.budget - int(bought.sum()))
        images["task_weight"] = images["task"].map(weights)
        images["task_budget"] = images["task"].map(budgets)
        images["why"] = pd.Series("reference", index=images.index).where(bought)
        images["rank"] = np.nan
        vectors = self._vectors(context, images["id"])

        def choose(task: tuple[IntVector, int, int]) -> IntVector:
            rows, budget, seed = task
            if vectors is None:
                return np.random.default_rng(seed).permutation(rows[~bought[rows]])[:budget]
            features, available = vectors.subset(rows), ~bought[rows]
            if self.picks == "kmeans":
                return rows[nearest_to_centers(features, available, budget, seed)]
            return rows[facility_location(features, available, ~available, budget)]

        members = images.groupby("task").indices
        tasks = [
            (np.asarray(members[task]), budget, int(context.rng.integers(2**31)))
            for task, budget in budgets.items()
        ]
        for chosen in for_each_task(choose, tasks):
            images.loc[chosen, "why"] = self.picks
            images.loc[chosen, "rank"] = np.arange(1, len(chosen) + 1)
        return images.assign(selected=images["why"].notna())

    def _vectors(self, context: SelectionContext, wanted: pd.Series) -> FeatureRows | None:
        """Features of these images, in their order; None where picks are random."""
        if self.picks == "random":
            return None
        ids, rows = context.features.by_id(normalize=True, center=self.center)
        return rows.subset(pd.Index(ids).get_indexer(pd.Index(wanted)))
