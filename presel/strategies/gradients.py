"""Strategies that compare the gradients of samples under the reference model: ICONS, LESS and TIVE."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.selection.allocation import allocate_tasks
from presel.selection.arrays import FloatMatrix
from presel.selection.influence import (
    draw,
    influence,
    mean_direction,
    target_influence,
    unit_gradients,
    votes,
)
from presel.strategies.base import SelectionContext, Strategy
from presel.strategies.ranking import ranked_slice

if TYPE_CHECKING:
    from presel.pipeline import Pipeline
    from presel.storage.stage import Stage

Dimension = Annotated[int, Field(ge=1)]


@component
class Targeted(Strategy):
    """Base of the strategies that look for samples with influence on target tasks.

    They read the instructions of the whole pool and, besides, labeled validation samples of the target tasks
    (group `validation`), which no ledger counts: an advantage over all other strategies.

    Attributes:
        dimension: Dimension of the projected gradients.
    """

    needs: ClassVar[tuple[str, ...]] = ("validation",)

    dimension: Dimension = 5120

    def stages(self, pipeline: "Pipeline") -> "dict[str, Stage[Any]]":
        """Gradients of the pool's samples and of the validation samples."""
        return {
            "gradients": pipeline.gradients_of(pipeline.all_instructions, self.dimension),
            "validation_gradients": pipeline.gradients_of(pipeline.validation_samples, self.dimension),
        }

    def influences(self, context: SelectionContext) -> FloatMatrix:
        """Influence of each sample on each target task, (n, K), samples in the order of the gradients."""
        validation = context["validation_gradients"]
        tasks = context.validation.set_index("id")["task"].loc[validation.ids]
        return target_influence(context["gradients"].array, validation.array, tasks.tolist())


@component
class Icons(Targeted):
    """Influence consensus (ICONS; Wu et al., 2025): the samples that are influential for most target tasks.

    Reads answers of validation samples, see `Targeted`. Votes are those of its authors' code, where MME has
    one vote, by the largest influence on one of its 13 subtasks; here each task of the validation samples has
    one, by its mean, so that MME is to be one task. Which samples come first of those with equally many votes
    is drawn, since ids may begin with the task's name. Their model is a checkpoint of tuning on the full pool
    after about a tenth of it, at a rate near its peak, whose adapter their code adds twice, on images cropped
    to squares; ours is the reference model, tuned to the end on 5 %, on images padded as in tuning. Gradients
    are those of plain SGD, the authors' default.
    """

    version: ClassVar[int] = 2

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes the samples with the most votes.

        Returns:
            Table of the chosen images: id, score (number of target tasks that vote for it).
        """
        influences = self.influences(context)
        share = min(1.0, context.budget / len(influences))
        found = votes(influences, share)  # (n,)
        ids = pd.Series(context["gradients"].ids)
        # By id, so that the order of the rows does not matter; below 1, so that only ties are decided.
        drawn = pd.Series(context.rng.random(len(ids)), index=ids.sort_values())
        ranking = ranked_slice(ids, found + drawn.loc[ids].to_numpy(), context.budget)
        return ranking.assign(score=np.floor(ranking["score"]))


@component
class Less(Targeted):
    """LESS (Xia et al., 2024): the samples that are most influential for one of the target tasks.

    Reads answers of validation samples, see `Targeted`. Its authors sum influence over four checkpoints,
    weighted by their learning rates, and use Adam's update for the pool's samples. The pipeline keeps one
    checkpoint, the reference model, and no state of Adam: so the sum has one term, and gradients are those of
    plain SGD, as the authors' are for validation samples. They adapt the attention layers alone, and select
    a subset for each target benchmark; one subset for all has to compare influences on different tasks,
    whose scales differ, so that tasks with weak influences get little.
    """

    dimension: Dimension = 8192

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes the samples whose largest influence on a task is the highest.

        Returns:
            Table of the chosen images: id, score (that influence).
        """
        return ranked_slice(context["gradients"].ids, self.influences(context).max(axis=1), context.budget)


@component
class Tive(Strategy):
    """TIVE (Liu et al., 2024): budgets by the tasks' mean gradient norm, typical samples of each task.

    Needs no validation samples. The authors tune on 8 % of the pool, as many of each task, at a tenth of the
    final tuning's learning rate, where the reference set has 5 % of each task and that rate; they leave out
    captions of pictures that the model was pretrained on, and repeat the samples of a task that is smaller
    than its budget, where here other tasks get the rest.

    Attributes:
        dimension: Dimension of the projected gradients.
        modules: Gradients are those of LoRA inside modules of this name; null for all of LoRA.
        scale: Factor of a sample's influence inside the softmax by which samples are drawn, q in the authors'
            code; at the published one the draw is nearly uniform.
    """

    dimension: Dimension = 8192
    modules: str | None = "self_attn"
    scale: Annotated[float, Field(ge=0)] = 0.001

    def stages(self, pipeline: "Pipeline") -> "dict[str, Stage[Any]]":
        """Gradients of the pool's samples."""
        return {"gradients": pipeline.gradients_of(pipeline.all_instructions, self.dimension, self.modules)}

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Draws samples of each task, more likely those with influence on the whole task.

        Returns:
            One row per sample: id, task_weight, gradient_norm, influence (mean cosine to all samples of its
            task), selected.
        """
        gradients = context["gradients"]
        rows, norms = unit_gradients(gradients.array)
        tasks = context.pool.set_index("id")["task"].loc[gradients.ids]
        table = pd.DataFrame({"id": gradients.ids, "task": tasks.to_numpy(), "gradient_norm": norms})
        # By id, so that neither budgets nor draws depend on the order of the rows.
        groups = [group for _, group in table.sort_values("id").groupby("task")]
        means = np.array([group["gradient_norm"].mean() for group in groups])
        weights = means / means.sum()
        quotas = allocate_tasks(weights, [len(group) for group in groups], context.budget)
        found = []
        for group, weight, quota in zip(groups, weights, quotas.tolist(), strict=True):
            own = rows.subset(group.index.to_numpy())
            scores = influence(own, mean_direction(own)[None])[:, 0]
            selected = np.zeros(len(group), dtype=bool)
            selected[draw(scores, quota, self.scale, context.rng)] = True
            found.append(group.assign(task_weight=weight, influence=scores, selected=selected))
        return pd.concat(found, ignore_index=True).drop(columns="task")
