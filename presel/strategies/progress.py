"""PROGRESS without questions: rounds that buy from the clusters that the model learns fastest."""

from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.selection.arrays import FloatVector, IntVector
from presel.selection.drawing import draw_from_clusters
from presel.strategies.rounds import RoundContext, RoundStrategy


@component
class Progress(RoundStrategy):
    """A variant of PROGRESS (Chandhok et al., CVPR 2026, arXiv 2506.01085) that needs no questions.

    The original clusters pairs of image and question into skills, and so needs all questions; here a skill is
    a cluster of a task's images, and the reference set is the warm-up. It also goes on training one model,
    where a round here tunes the base model anew on all that is bought, as every other strategy does. The
    defaults are our own.

    Progress Δ of a skill is, as in the original's variant by losses, the relative decrease of its mean loss
    from the previous evaluation to the present one. On samples that it was tuned on, a model has a low loss
    whatever it learned of the skill. So the two evaluations here are of the samples bought last, before any
    tuning on them: by the model tuned on all that was bought before, and by the model of the round before
    that (at first the base model). Both are of the same samples, which are new to both models, so that the
    difference is what the last tuning taught. In the first round no sample is new to a tuned model, and
    images are drawn uniformly.

    Attributes:
        rounds: Number of rounds that share the budget beside the reference set equally.
        tau: Temperature τ: skills are drawn with p = softmax(Δ/τ). Low values draw from few clusters, high
            ones from all alike.
        random_share: Share δ of a round that is drawn uniformly from the whole pool instead.
        min_samples: A skill with fewer new samples has the progress of its task, and one whose task has fewer
            that of all samples.
    """

    needs: ClassVar[tuple[str, ...]] = ("reference", "clusters")

    tau: Annotated[float, Field(gt=0)] = 0.3
    random_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    min_samples: Annotated[int, Field(ge=1)] = 5

    def select_round(self, context: RoundContext) -> pd.DataFrame:
        """Draws the round's images.

        Returns:
            Table of the drawn images: id, cluster, progress (of the cluster; NaN in the first round).
        """
        images = context.clusters.sort_values("id", ignore_index=True)
        skills = images.groupby(["task", "cluster"], sort=True)
        images["skill"] = skills.ngroup()
        tasks = skills["task"].first().factorize()[0]  # (skills,)
        progress = np.full(len(tasks), np.nan)
        if context.round > 1:
            new = context.bought[context.bought["round"] == context.round - 1]
            # In the order of the ids, as sums of floats depend on their order.
            new = images[["id", "skill"]].merge(new[["id", "loss_before", "loss_after"]].dropna(), on="id")
            progress = learning_progress(
                new["loss_before"].to_numpy(),
                new["loss_after"].to_numpy(),
                new["skill"].to_numpy(),
                tasks,
                self.min_samples,
            )
        drawn = draw_from_clusters(
            np.nan_to_num(progress) / self.tau,
            images["skill"].to_numpy(),
            ~images["id"].isin(context.bought["id"]).to_numpy(),
            context.size,
            1 if context.round == 1 else self.random_share,
            context.rng,
        )
        images["progress"] = progress[images["skill"]]
        return images.loc[drawn, ["id", "cluster", "progress"]]


def learning_progress(
    before: FloatVector, after: FloatVector, skills: IntVector, tasks: IntVector, min_samples: int = 1
) -> FloatVector:
    """Relative decrease of each skill's mean loss, Δ = (L_before − L_after) / L_before.

    Args:
        before: Loss of each sample under the earlier model, shape (n,), n at least 1.
        after: Loss of each sample under the later model, shape (n,).
        skills: Skill of each sample, from 0 to K − 1, shape (n,).
        tasks: Task of each skill, from 0 to M − 1, shape (K,).
        min_samples: A skill with fewer samples has the Δ of its task, and one whose task has fewer that of
            all samples.

    Returns:
        Shape (K,), at most 1, negative where the loss increased; 0 where it was 0 before.
    """
    least = min(min_samples, len(before))
    progress = np.zeros(len(tasks))
    # From all samples together to each skill; a number for each skill says which group it is in.
    for groups in (np.zeros_like(tasks), tasks, np.arange(len(tasks))):  # (K,)
        members = groups[skills]  # (n,)
        counts = np.bincount(members, minlength=len(tasks))
        earlier, later = (np.bincount(members, losses, minlength=len(tasks)) for losses in (before, after))
        change = np.divide(earlier - later, earlier, out=np.zeros_like(earlier), where=earlier > 0)
        progress = np.where(counts[groups] >= least, change[groups], progress)
    return progress
