"""VisNec: the samples whose answers need the image most, in every cluster of questions."""

import warnings
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field
from threadpoolctl import threadpool_limits

from presel.component import Seed, component
from presel.selection.arrays import BoolVector, Float32Matrix, FloatVector, IntVector, round_for_ties
from presel.strategies.base import SelectionContext, Strategy

# Samples of each step of mini-batch k-means, as in the authors' code.
_BATCH = 2048


@component
class VisNec(Strategy):
    """Visual necessity (VisNec; arXiv 2603.01195, ECCV 2026), which ignores tasks.

    A sample's necessity is its loss without the image minus that with it, under the untuned model. Questions
    are clustered by the mean of their token embeddings in that model, where the authors use a sentence
    encoder, all-MiniLM-L6-v2; `most_necessary` chooses in each cluster. Without the image the text keeps its
    positions, where theirs moves up to the place of the image's first token.

    Attributes:
        clusters: Clusters of questions; at most the number of samples.
        seed: Seed of k-means. Nothing else is random, so that all runs choose the same.
    """

    needs: ClassVar[tuple[str, ...]] = ("visual_necessity", "question_features")

    clusters: Annotated[int, Field(ge=1)] = 20
    seed: Seed = 42

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes up to the budget, as `most_necessary` does.

        Returns:
            One row per sample: id, necessity, cluster, selected.
        """
        # By id, so that the order of the rows does not matter.
        losses = context.visual_necessity.sort_values("id", ignore_index=True)
        order = pd.Index(context.question_features.ids).get_indexer(losses["id"])
        questions = context.question_features.array[order].astype(np.float32)  # (n, d)
        labels = question_clusters(questions, min(self.clusters, len(losses)), self.seed)
        necessity = (losses["loss_without_image"] - losses["loss_with_image"]).to_numpy()
        return pd.DataFrame(
            {
                "id": losses["id"],
                "necessity": necessity,
                "cluster": labels,
                "selected": most_necessary(labels, necessity, context.budget),
            }
        )


def question_clusters(questions: Float32Matrix, n_clusters: int, seed: int) -> IntVector:
    """Clusters of vectors, (n, d) -> (n,), by scikit-learn's k-means in mini-batches; some may be empty."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    model = MiniBatchKMeans(n_clusters=n_clusters, random_state=seed, batch_size=_BATCH)
    # One thread, since the number of threads changes the rounding of sums.
    with threadpool_limits(1), warnings.catch_warnings():
        # scikit-learn warns of fewer distinct vectors than clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels: IntVector = model.fit_predict(questions).astype(np.int64)
    return labels


def most_necessary(labels: IntVector, necessity: FloatVector, budget: int) -> BoolVector:
    """Chooses the same share of each cluster: the samples of highest necessity.

    Of a cluster of m samples among n it takes m · budget / n, rounded down, but at least one: together a few
    less than the budget, as in the authors' code. Where these single samples would exceed the budget, the
    clusters whose best sample has the highest necessity get theirs.

    Args:
        labels: Cluster of each sample, shape (n,).
        necessity: Shape (n,).
        budget: Samples to choose at most, from 1 to n.

    Returns:
        Whether a sample is chosen, shape (n,). Necessities are compared rounded to nine decimals; of equal
        ones the first row counts.
    """
    scores = round_for_ties(necessity)
    sizes = np.bincount(labels)  # (clusters,)
    ranked = np.lexsort((-scores, labels))  # (n,), cluster after cluster
    firsts = np.cumsum(sizes) - sizes  # (clusters,)
    quotas = sizes * budget // len(labels)  # (clusters,)
    small = np.flatnonzero((quotas == 0) & (sizes > 0))
    best_first = small[np.argsort(-scores[ranked[firsts[small]]], kind="stable")]
    quotas[best_first[: budget - quotas.sum()]] = 1
    rank_in_cluster = np.arange(len(labels)) - np.repeat(firsts, sizes)  # (n,)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[ranked[rank_in_cluster < np.repeat(quotas, sizes)]] = True
    return chosen
