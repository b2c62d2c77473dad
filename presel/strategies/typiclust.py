"""TypiClust: the most typical images of the clusters, round robin."""

from typing import Annotated, ClassVar, Literal, TypeAlias

import numpy as np
import pandas as pd
from pydantic import Field

from presel.component import component
from presel.errors import PreselError
from presel.selection.arrays import Float32Matrix, IntVector, round_for_ties, squared_distances
from presel.selection.clustering import cluster
from presel.strategies.base import SelectionContext, Strategy

Distance: TypeAlias = Literal["squared", "euclidean"]


@component
class TypiClust(Strategy):
    """TypiClust (Hacohen et al., 2022), which ignores tasks; on L2-normalized features.

    As in its authors' code, typicality goes by squared distances, an image that was picked leaves its cluster
    before typicality is measured again, and clusters that are too small are left out, so that fewer images
    than the budget may be chosen. Clusters are those of `presel.selection.cluster`; the authors' are
    scikit-learn's, above 50 clusters by mini-batches.

    Attributes:
        distance: What typicality averages: the `squared` Euclidean distance, which the authors' faiss index
            returns, or the plain `euclidean` one of the paper.
        max_clusters: Maximum number of clusters; there are at most as many as images to select.
        neighbors: Number of nearest images of the cluster that typicality averages over; at most half of the
            cluster's images.
        min_cluster_size: Clusters with fewer images are left out.
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)

    distance: Distance = "squared"
    max_clusters: Annotated[int, Field(ge=1)] = 500
    neighbors: Annotated[int, Field(ge=1)] = 20
    min_cluster_size: Annotated[int, Field(ge=2)] = 6

    def select(self, context: SelectionContext) -> pd.DataFrame:
        """Takes images from the clusters, round robin.

        Returns:
            Table of the chosen images: id, cluster, rank (from 1 in the order of picking in the cluster).

        Raises:
            PreselError: If all clusters are too small.
        """
        ids, rows = context.features.by_id(normalize=True)
        n_clusters = min(context.budget, self.max_clusters)
        labels, _ = cluster(rows, n_clusters, int(context.rng.integers(2**31)), canonical_order=True)
        sizes = np.bincount(labels, minlength=n_clusters)
        if sizes.max() < self.min_cluster_size:
            raise PreselError(
                f"strategy=typiclust: of {n_clusters} clusters of {len(rows)} images none has "
                f"strategy.min_cluster_size={self.min_cluster_size} images; set strategy.max_clusters="
                f"{max(1, len(rows) // (2 * self.min_cluster_size))} or a smaller strategy.min_cluster_size"
            )
        quotas = round_robin(np.where(sizes < self.min_cluster_size, 0, sizes), context.budget)
        chosen = []
        for label in np.flatnonzero(quotas):
            members = np.flatnonzero(labels == label)
            picks = most_typical(rows.take(members), int(quotas[label]), self.neighbors, self.distance)
            rank = np.arange(1, len(picks) + 1)
            chosen.append(pd.DataFrame({"id": ids[members[picks]], "cluster": label, "rank": rank}))
        return pd.concat(chosen, ignore_index=True)


def round_robin(sizes: IntVector, budget: int) -> IntVector:
    """Quotas of clusters if images are taken round robin, larger clusters first.

    Args:
        sizes: Images of each cluster that may be taken, shape (C,).
        budget: Number of images to take; all if there are fewer.

    Returns:
        Images to take of each cluster, shape (C,).
    """
    quotas = np.zeros_like(sizes)
    left = min(budget, int(sizes.sum()))
    # Stable, so that of equally large clusters the first comes first.
    larger_first = np.argsort(-sizes, kind="stable")
    while left:
        not_exhausted = larger_first[sizes[larger_first] > quotas[larger_first]][:left]
        quotas[not_exhausted] += 1
        left -= len(not_exhausted)
    return quotas


def most_typical(
    vectors: Float32Matrix, count: int, neighbors: int = 20, distance: Distance = "squared"
) -> IntVector:
    """Repeatedly takes the most typical image among the remaining images of a cluster.

    Typicality is 1 / (mean distance to the nearest others + 1e-5).

    Args:
        vectors: Images of a cluster, shape (n, d).
        count: Images to take, at most n.
        neighbors: Number of nearest others to average over; at most half of the remaining images, at least 1.
        distance: See `TypiClust`.

    Returns:
        Rows in the order of picking, shape (count,); of equally typical ones the first.
    """
    wide = vectors.astype(np.float64)
    distances = squared_distances(wide, wide)
    if distance == "euclidean":
        distances = np.sqrt(distances)
    np.fill_diagonal(distances, np.inf)
    left = np.arange(len(vectors))
    picks = np.empty(count, dtype=np.int64)
    for place in range(count):
        k = max(1, min(neighbors, len(left) // 2))
        nearest = np.partition(distances[np.ix_(left, left)], k - 1, axis=1)[:, :k]  # (images left, k)
        typicality = round_for_ties(1 / (nearest.mean(axis=1) + 1e-5))
        best = int(typicality.argmax())
        picks[place] = left[best]
        left = np.delete(left, best)
    return picks
