"""PreSel: task budgets by instruction relevance, then the most central images of each cluster."""

from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.importance import RelevanceScore
from presel.selection import most_central
from presel.selection.arrays import FloatVector, round_for_ties
from presel.selection.distinct import distinct_ranks
from presel.strategies.base import SelectionContext, Strategy
from presel.strategies.task_budgets import split_over_tasks, weights_by_pool, weights_by_relevance


@component
class PreSel(Strategy):
    """Pre-instruction data selection (Safaei et al., CVPR 2025, section 3).

    The budget counts the reference set, so |D_S| in eq. 6 is budget - |D_ref| in every mode of allocation,
    `paper` too, as in the released code: 15 % are 5 % for the reference set and 10 % chosen.

    In task mode `released_vision_flan` a task's budget is capped at its images outside the reference set, in
    the released code at its full size. Features are stored in float16, the released ones in float32.

    Attributes:
        weighting: How tasks share the budget: by `relevance` (eq. 5), or for ablations by their `size` or
            equally (`uniform`).
        shrink: Share of each task's weight that is replaced by an equal one: 0 is the paper, 1 `uniform`.
        pick: Which images are taken from a cluster: those of highest `centrality` (eq. 7); `distinct` ones,
            central but unlike those taken before them and the reference set (`distinct_ranks`); or, as an
            ablation, `random` ones.
        redundancy_penalty: For `distinct`: how much the resemblance to an image that is taken counts.
        redundancy_power: For `distinct`: the higher, the more alike two images must be to count.
        score: `ratio` (eq. 3) or an ablation, see `presel.importance.relevance_scores`.
        tau: Temperature of the task weights (eq. 5); None for 1/sqrt(number of tasks).
        task_allocation: How the budget is split over tasks, a mode of `allocate_tasks`.
        cluster_allocation: How a task's budget is split over clusters, a mode of `allocate_clusters`.
        size_exponent: Clusters share a task's budget by their sizes to this power: 1 is eq. 6, at 0.5 small
            clusters get more. Another than 1 needs cluster_allocation `exact`.
    """

    weighting: Literal["relevance", "size", "uniform"] = "relevance"
    shrink: Annotated[float, Field(ge=0, le=1)] = 0.0
    pick: Literal["centrality", "distinct", "random"] = "centrality"
    redundancy_penalty: Annotated[float, Field(ge=0)] = 1.0
    redundancy_power: Annotated[float, Field(gt=0)] = 8.0
    score: RelevanceScore = "ratio"
    tau: Annotated[float, Field(gt=0)] | None = None
    task_allocation: Literal["exact", "paper", "released_llava", "released_vision_flan"] = "exact"
    cluster_allocation: Literal["exact", "paper", "released"] = "exact"
    size_exponent: Annotated[float, Field(ge=0)] = 1.0

    def __post_init__(self) -> None:
        """Checks the exponent against the mode."""
        if self.size_exponent != 1 and self.cluster_allocation != "exact":
            raise ValueError(
                f"size_exponent={self.size_exponent:g} needs allocation.clusters=exact, not "
                f"{self.cluster_allocation}"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """What the paper's method reads, but for IRS where it decides nothing; features if distinct."""
        relevance = ("relevance",) if self.weighting == "relevance" else ()
        features = ("features",) if self.pick == "distinct" else ()
        return ("reference", *relevance, "centrality", *features)

    @property
    def unused_settings(self) -> frozenset[str]:
        """The settings of other weights and picks."""
        weights = () if self.weighting == "relevance" else ("score", "tau")
        equal = ("shrink",) if self.weighting == "uniform" else ()
        picks = () if self.pick == "distinct" else ("redundancy_penalty", "redundancy_power")
        return frozenset((*weights, *equal, *picks))

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Selects the reference set and the most central images of every cluster.

        Returns:
            One row per image: id, task, cluster, selected, why (`reference`, `central`, `distinct` or
            `random`), the task's weight and budget, centrality, and rank (from 1 by centrality in the
            cluster).
        """
        images = context.centrality.assign(reference=context.centrality["id"].isin(context.reference["id"]))
        weights = self.weights(context)
        table = pd.concat(
            self._select_from(images[images["task"] == task].copy(), context, budget).assign(
                task_weight=weights[task], task_budget=budget
            )
            for task, budget in self._task_budgets(images, weights, context.budget).items()
        )
        if self.cluster_allocation == "released":
            _fill_at_random(table, context)
        return table.drop(columns="reference")

    def _task_budgets(
        self, images: pd.DataFrame, weights: Mapping[str, float], budget: int
    ) -> Mapping[str, float]:
        """Number of images of each task besides its part of the reference set, which is bought already."""
        left = budget - int(images["reference"].sum())
        if self.task_allocation == self.cluster_allocation == "paper":
            # Eq. 6 rounds once, in the clusters.
            return {task: weight * left for task, weight in weights.items()}
        free = images.loc[~images["reference"], "task"]
        return split_over_tasks(weights, free, left, self.task_allocation)

    def _select_from(self, images: pd.DataFrame, context: SelectionContext, budget: float) -> pd.DataFrame:
        """Marks the selected images of a task; the images are sorted by id."""
        chosen = most_central(
            self._preferences(images, context),
            images["cluster"],
            ~images["reference"],
            budget,
            self.cluster_allocation,
            size_exponent=self.size_exponent,
        )
        images["why"] = pd.Series("reference", index=images.index).where(images["reference"])
        images.loc[images.index[chosen], "why"] = "central" if self.pick == "centrality" else self.pick
        images["selected"] = images["why"].notna()
        compared = pd.Series(round_for_ties(images["centrality"].to_numpy()), images.index)
        images["rank"] = compared.groupby(images["cluster"]).rank(method="first", ascending=False)
        return images

    def _preferences(self, images: pd.DataFrame, context: SelectionContext) -> FloatVector:
        """Scores of a task's images, of which the highest in each cluster are taken, (n,)."""
        if self.pick == "random":
            return context.rng.random(len(images))
        centrality = images["centrality"].to_numpy()
        if self.pick == "centrality":
            return centrality
        return -distinct_ranks(
            context.features.rows_of(images["id"]),
            centrality,
            images["cluster"].to_numpy(),
            ~images["reference"].to_numpy(),
            penalty=self.redundancy_penalty,
            power=self.redundancy_power,
        )

    def weights(self, context: SelectionContext) -> dict[str, float]:
        """Share of each task: its importance (eq. 3 to 5), or an ablation of it."""
        if self.weighting == "relevance":
            weights = weights_by_relevance(context, self.score, self.tau)
        else:
            weights = weights_by_pool(context, self.weighting)
        equal = self.shrink / len(weights)
        return {task: (1 - self.shrink) * weight + equal for task, weight in weights.items()}


def _fill_at_random(table: pd.DataFrame, context: SelectionContext) -> None:
    """Fills what rounding left of the budget with random images of the whole pool, as released."""
    missing = context.budget - int(table["selected"].sum())
    left = np.sort(table.loc[~table["selected"], "id"].to_numpy(dtype=str))
    drawn = table["id"].isin(context.rng.choice(left, min(max(missing, 0), len(left)), replace=False))
    table.loc[drawn, "why"] = "random fill"
    table.loc[drawn, "selected"] = True
