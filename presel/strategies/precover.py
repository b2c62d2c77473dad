"""PreCover: images that cover their task, chosen from images alone."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.errors import PreselError
from presel.importance import RelevanceScore
from presel.selection.arrays import IntVector
from presel.selection.coverage import facility_location, nearest_to_centers
from presel.selection.feature_rows import FeatureRows
from presel.selection.threads import for_each_task
from presel.selection.uncertainty import uncertain_and_diverse
from presel.strategies.base import SelectionContext, Strategy
from presel.strategies.task_budgets import (
    fill_over_tasks,
    split_over_tasks,
    weights_by_gain,
    weights_by_image_relevance,
    weights_by_pool,
    weights_by_relevance,
)

if TYPE_CHECKING:
    from presel.pipeline import Pipeline
    from presel.storage.stage import Stage

# What these budgets are computed from, besides the reference set.
_MEASURED = {
    "relevance": ("relevance",),
    "image_relevance": ("relevance", "swapped_relevance"),
    "gain": ("learning_gain",),
}


@component
class PreCover(Strategy):
    """Coverage of each task in place of PreSel's central images of its clusters.

    With budgets by `size` or `uniform` no instruction is read before the selection and no model tuned: all
    images of the budget are chosen, and there is no reference set. With other budgets, or picks by
    `uncertainty`, the reference set is bought first, as in PreSel: it counts in the budget and is part of the
    selection. What it covers is not covered again by `facility_location` and `uncertainty`; `kmeans` and
    `random` choose among the other images as if it were not there.

    Attributes:
        budgets: How tasks share the budget: equally (`uniform`); by their `size`; by the `relevance` of
            questions (eq. 5) or that of images (`image_relevance`: how much another image raises the loss),
            which share what the reference set leaves, as in PreSel; or by learning `gain`, how much tuning
            on one half of the reference set lowers the loss of the other.
        picks: Which images of a task are taken: those nearest to the centers of as many clusters as there are
            images to take (`kmeans`); those of greedy `facility_location`; those drawn by `uncertainty`
            of the reference model and distance from each other (`uncertain_and_diverse`); or `random` ones.
        center: Whether the mean of the pool's features is subtracted before they are L2-normalized.
        score: Relevance of a sample, see `presel.importance.relevance_scores`.
        tau: Temperature of the task weights (eq. 5); None for 1/sqrt(number of tasks).
        exponent: For `gain`: 0.5 weighs tasks by the square root of their gain, 1 by the gain, 0 all that
            gain equally (`presel.importance.gain_weights`).
        questions: For `uncertainty`: how many questions of the reference set the reference model is asked
            about each image.
        beta: For `uncertainty`: its exponent; 0 draws by distance alone.
    """

    budgets: Literal["size", "uniform", "relevance", "image_relevance", "gain"] = "uniform"
    picks: Literal["random", "kmeans", "facility_location", "uncertainty"] = "kmeans"
    center: bool = True
    score: RelevanceScore = "ratio"
    tau: Annotated[float, Field(gt=0)] | None = None
    exponent: Annotated[float, Field(ge=0)] = 0.5
    questions: Annotated[int, Field(ge=1)] = 2
    beta: Annotated[float, Field(ge=0)] = 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        """Features for all picks but random ones, and the reference set only where something rests on it."""
        features = () if self.picks == "random" else ("features",)
        measured = _MEASURED.get(self.budgets, ())
        reference = ("reference",) if measured or self.picks == "uncertainty" else ()
        return (*features, *reference, *measured)

    @property
    def unused_settings(self) -> frozenset[str]:
        """The settings of other budgets and picks."""
        read_by = {
            "score": self._by_relevance,
            "tau": self._by_relevance,
            "exponent": self.budgets == "gain",
            "center": self.picks != "random",
            "questions": self.picks == "uncertainty",
            "beta": self.picks == "uncertainty",
        }
        return frozenset(name for name, read in read_by.items() if not read)

    def stages(self, pipeline: "Pipeline") -> "dict[str, Stage[Any]]":
        """The uncertainty of each image, if it decides."""
        uncertain = self.picks == "uncertainty"
        return {"uncertainty": pipeline.uncertainty_by(self.questions)} if uncertain else {}

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Spends exactly the budget.

        Returns:
            One row per image: id, task, selected, why (`reference`, or the setting `picks`), rank (from 1 in
            the order of choosing in the task), the task's weight and budget, uncertainty if picks are by it.

        Raises:
            PreselError: If the features of an image are 0 once they are centered, as in a pool of copies.
        """
        images = context.pool[["id", "task"]].sort_values(["task", "id"], ignore_index=True)
        bought = np.zeros(len(images), dtype=np.bool_)
        if "reference" in self.needs:
            bought = images["id"].isin(context.reference["id"]).to_numpy()
        weights = self._weights(context)
        if self._by_relevance:
            budgets = split_over_tasks(weights, images["task"][~bought], context.budget - int(bought.sum()))
        else:
            budgets = fill_over_tasks(weights, images["task"], bought, context.budget)
        images["task_weight"] = images["task"].map(weights)
        images["task_budget"] = images["task"].map(budgets)
        images["why"] = pd.Series("reference", index=images.index).where(bought)
        images["rank"] = np.nan
        vectors = None if self.picks == "random" else self._vectors(context, images["id"])
        if self.picks == "uncertainty":
            known = context["uncertainty"].set_index("id")["uncertainty"]
            images["uncertainty"] = images["id"].map(known)
            # Images that leave no room for a question are drawn last.
            uncertainty = images["uncertainty"].fillna(0).to_numpy()

        def choose(task: tuple[IntVector, int, int]) -> IntVector:
            rows, budget, seed = task
            available = ~bought[rows]
            if vectors is None:
                return np.random.default_rng(seed).permutation(rows[available])[:budget]
            features = vectors.subset(rows)
            if self.picks == "kmeans":
                return rows[nearest_to_centers(features, available, budget, seed)]
            if self.picks == "facility_location":
                return rows[facility_location(features, available, ~available, budget)]
            rng = np.random.default_rng(seed)
            return rows[
                uncertain_and_diverse(
                    features, uncertainty[rows], available, ~available, budget, rng, self.beta
                )
            ]

        members = images.groupby("task").indices
        tasks = [
            (np.asarray(members[task]), budget, int(context.rng.integers(2**31)))
            for task, budget in budgets.items()
        ]
        for chosen in for_each_task(choose, tasks):
            images.loc[chosen, "why"] = self.picks
            images.loc[chosen, "rank"] = np.arange(1, len(chosen) + 1)
        return images.assign(selected=images["why"].notna())

    @property
    def _by_relevance(self) -> bool:
        return self.budgets in ("relevance", "image_relevance")

    def _vectors(self, context: SelectionContext, ids: pd.Series) -> FeatureRows:
        try:
            return context.features.rows_of(ids, center=self.center)
        except ValueError as error:
            raise PreselError(f"strategy=precover: {error}") from error

    def _weights(self, context: SelectionContext) -> dict[str, float]:
        if self.budgets == "relevance":
            return weights_by_relevance(context, self.score, self.tau)
        if self.budgets == "image_relevance":
            return weights_by_image_relevance(context, self.score, self.tau)
        if self.budgets == "gain":
            return weights_by_gain(context, self.exponent)
        return weights_by_pool(context, self.budgets)
