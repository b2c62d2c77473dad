"""COINCIDE: more samples from transferable and diverse clusters, representative ones in each cluster."""

from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.selection.arrays import (
    Float32Matrix,
    FloatMatrix,
    FloatVector,
    IntVector,
    round_for_ties,
    squared_distances,
)
from presel.selection.kmeans.assignment import grouped
from presel.selection.kmeans.lloyd import spherical_kmeans
from presel.selection.threads import for_each_task
from presel.strategies.base import SelectionContext, Strategy

# 10,000 clusters for the 665,298 samples of LLaVA-1.5. Vision-FLAN's 2,500 are one in 74.4.
_SAMPLES_PER_CLUSTER = 66.5
# Elements of a block of similarities, 32 MB in float64.
_BLOCK = 2**22


@component
class Coincide(Strategy):
    """Concept-skill transferability (COINCIDE; Lee et al., EMNLP 2024, section 3), which ignores tasks.

    Clusters of image-text features share the budget by exp(transferability / (density · tau)), see
    `transferabilities`, `mean_similarities` and `sequential_quotas`; inside a cluster `greedy_mmd` chooses.
    Where the paper does not say, spherical k-means is initialized by random samples, as in its authors' code,
    and an empty cluster takes the sample that is farthest from its centroid.

    Attributes:
        n_clusters: K, at most the number of samples; published: 10,000 for LLaVA-1.5, 2,500 for Vision-FLAN
            (`conf/published`). None, for any other pool: one in 66.5 samples, as for LLaVA-1.5.
        iterations: Maximum number of iterations of k-means.
        max_similarity: Pairs of centroids whose text parts have a higher cosine similarity count as one
            concept, and are left out of transferability.
        tau: Temperature of the clusters' shares.
    """

    needs: ClassVar[tuple[str, ...]] = ("multimodal_features",)

    n_clusters: Annotated[int, Field(ge=1)] | None = None
    iterations: Annotated[int, Field(ge=1)] = 50
    max_similarity: Annotated[float, Field(gt=-1, lt=1)] = 0.9
    tau: Annotated[float, Field(gt=0)] = 0.1

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Spends exactly the budget.

        Returns:
            One row per image: id, cluster, its transferability and density, rank (from 1 in the order of
            choosing in the cluster), selected.
        """
        ids, rows = context.multimodal_features.by_id(normalize=True)
        # Sorted by content: the result is invariant to row order, and to ids unless samples are equal.
        by_content = rows.content_order()
        rows = rows.subset(by_content)
        n_clusters = min(self.n_clusters or max(1, round(len(rows) / _SAMPLES_PER_CLUSTER)), len(rows))
        labels, centroids, _ = spherical_kmeans(rows, n_clusters, context.rng, self.iterations)
        order, bounds = grouped(labels, n_clusters)
        members = np.split(order, bounds[1:-1])

        def measure(cluster: IntVector) -> FloatVector:
            return mean_similarities(rows.take(cluster).astype(np.float64))

        def choose(cluster: IntVector, similarity: FloatVector, quota: int) -> IntVector:
            return cluster[greedy_mmd(rows.take(cluster).astype(np.float64), similarity, quota)]

        similarities = list(for_each_task(measure, members))
        density = np.array([similarity.mean() for similarity in similarities])
        transferability = transferabilities(text_half(centroids), self.max_similarity)
        quotas = sequential_quotas(transferability / (density * self.tau), np.diff(bounds), context.budget)
        rank = np.full(len(rows), np.nan)
        parts = list(zip(members, similarities, quotas.tolist(), strict=True))
        for chosen in for_each_task(lambda part: choose(*part), parts):
            rank[chosen] = np.arange(1, len(chosen) + 1)
        return pd.DataFrame(
            {
                "id": ids[by_content],
                "cluster": labels,
                "transferability": transferability[labels],
                "density": density[labels],
                "rank": rank,
                "selected": ~np.isnan(rank),
            }
        )


def text_half(features: Float32Matrix) -> Float32Matrix:
    """The text tokens' part of multimodal features, (n, 2 · m) -> (n, m)."""
    return features[:, features.shape[1] // 2 :]


def transferabilities(centroids: Float32Matrix, max_similarity: float = 0.9) -> FloatVector:
    """Estimates how well learning one cluster helps the others: S, the mean cosine to their centroids.

    Pairs above `max_similarity` are left out, as in the authors' code, and so is a centroid with itself. A
    centroid without any other pair, for which S is undefined, gets the maximum, `max_similarity`.

    Args:
        centroids: Shape (K, m), none zero; norms do not matter.
        max_similarity: Maximum cosine similarity of a counted pair, below 1.

    Returns:
        Shape (K,). Memory grows with K, not with its square.
    """
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    result = np.empty(len(unit))
    step = max(1, _BLOCK // len(unit))
    for start in range(0, len(unit), step):
        cosines = unit[start : start + step] @ unit.T
        counted = cosines <= max_similarity
        sums = np.where(counted, cosines, 0).sum(axis=1, dtype=np.float64)
        counts = counted.sum(axis=1)
        result[start : start + step] = np.where(counts > 0, sums / np.maximum(counts, 1), max_similarity)
    return result


def gaussian_kernel(first: FloatMatrix, second: FloatMatrix) -> FloatMatrix:
    """Similarities exp(−d²/2), (n, d) and (m, d) -> (n, m)."""
    similarities: FloatMatrix = np.exp(-squared_distances(first, second) / 2)
    return similarities


def mean_similarities(vectors: FloatMatrix) -> FloatVector:
    """Averages the Gaussian kernel of each vector of a cluster with all of them, (n, d) -> (n,).

    The mean of these means is the cluster's density D; that of a single sample is 1. Memory grows with n, not
    with its square.
    """
    step = max(1, _BLOCK // len(vectors))
    blocks = [vectors[start : start + step] for start in range(0, len(vectors), step)]
    return np.concatenate([gaussian_kernel(block, vectors).mean(axis=1) for block in blocks])


def sequential_quotas(log_weights: FloatVector, sizes: IntVector, budget: int) -> IntVector:
    """Splits a budget among clusters in proportion to exp(log_weights), capped at their sizes.

    Clusters are visited by descending weight, of equal ones the first, and each takes its share of what the
    others before it have left among those that are still to come, rounded half to even. What the last one
    cannot take, which the authors' code leaves unspent, is split in the same way among clusters with room.

    Args:
        log_weights: Finite, shape (K,); only their differences matter.
        sizes: Samples of each cluster, shape (K,).
        budget: Number of samples to take; all if there are fewer.

    Returns:
        Samples to take of each cluster, shape (K,), `min(budget, sizes.sum())` together.
    """
    quotas = np.zeros_like(sizes)
    left = min(budget, int(sizes.sum()))
    descending = np.argsort(-log_weights, kind="stable")
    while left:
        visited = descending[quotas[descending] < sizes[descending]]
        to_come = np.logaddexp.accumulate(log_weights[visited][::-1])[::-1]
        shares = np.exp(log_weights[visited] - to_come)
        for cluster, share in zip(visited, shares.tolist(), strict=True):
            taken = min(round(left * share), int(sizes[cluster] - quotas[cluster]))
            quotas[cluster] += taken
            left -= taken
    return quotas


def greedy_mmd(vectors: FloatMatrix, similarities: FloatVector, count: int) -> IntVector:
    """Greedily chooses samples that represent their cluster, each minimizing MMD².

    MMD² between a cluster and m chosen samples Y (Gretton et al., 2012, biased, k by `gaussian_kernel`) is a
    constant + Σ_yy' k(y, y')/m² − 2·Σ_y similarities[y]/m. Given the others, the best m-th sample y has the
    largest similarities[y] − Σ_y' k(y, y')/m over the others y'.

    Args:
        vectors: Samples of a cluster, shape (n, d).
        similarities: Their `mean_similarities`, shape (n,).
        count: Samples to choose, at most n.

    Returns:
        Rows in the order of choosing, shape (count,). Gains are compared rounded to nine decimals; of equal
        ones the first row is chosen.
    """
    chosen = np.empty(count, dtype=np.int64)
    covered = np.zeros(len(vectors))
    for place in range(count):
        gains = round_for_ties(similarities - covered / (place + 1))
        gains[chosen[:place]] = -np.inf
        chosen[place] = gains.argmax()
        covered += gaussian_kernel(vectors, vectors[chosen[place], None])[:, 0]
    return chosen
