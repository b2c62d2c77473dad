"""Orders the images of a cluster by centrality, near-duplicates of earlier ones later."""

import numpy as np
import numpy.typing as npt

from presel.selection.arrays import BoolVector, FloatMatrix, FloatVector, round_for_ties
from presel.selection.feature_rows import FeatureRows
from presel.selection.picking import checked_labels


def distinct_ranks(
    features: "npt.ArrayLike | FeatureRows",
    centrality: FloatVector,
    labels: npt.ArrayLike,
    available: npt.ArrayLike,
    *,
    penalty: float = 1.0,
    power: float = 8.0,
) -> FloatVector:
    """Ranks the available images of each cluster in turn: central ones, unlike those before them.

    Next comes the image I of largest s_NC(I) - penalty · max(0, max over J of cos(I, J))^power, where J runs
    over the earlier images of the cluster and those that are not available: maximal marginal relevance
    (Carbonell and Goldstein, SIGIR 1998) with the neighbor centrality s_NC (eq. 7) as relevance.

    Args:
        features: All images of the task, shape (n, d), of any norm.
        centrality: s_NC of the available images, shape (n,).
        labels: Cluster of every image, whole numbers of at least 0, shape (n,).
        available: Which images can be chosen (False for the reference set), shape (n,), bool.
        penalty: Weight of the resemblance, at least 0; with 0 the ranks are those of the centrality.
        power: The higher it is, the more alike images must be to count, above 0.

    Returns:
        Ranks from 1 in each cluster, shape (n,); NaN for images that are not available. Values are compared
        rounded to nine decimals; of equal ones the first row comes first. Takes time proportional to the
        squares of the clusters' sizes.

    Raises:
        ValueError: If lengths differ, labels or `available` have another type, an option is out of range, or
            a feature vector is refused.
    """
    rows = FeatureRows.of(features)
    clusters, free = checked_labels(labels, available, len(rows))
    if centrality.shape != free.shape:
        raise ValueError(
            f"centrality has shape {centrality.shape} for {len(rows)} images; one each is needed"
        )
    if penalty < 0 or power <= 0:
        raise ValueError(f"penalty is {penalty} and power {power}; they must be at least 0 and above 0")
    ranks = np.full(len(rows), np.nan)
    for label in np.unique(clusters[free]):
        members = np.flatnonzero(clusters == label)  # (m,)
        vectors = rows.take(members).astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ranks[members] = _ranks(vectors, centrality[members], free[members], penalty, power)
    return ranks


def _ranks(
    vectors: FloatMatrix, centrality: FloatVector, free: BoolVector, penalty: float, power: float
) -> FloatVector:
    """Ranks the free images of one cluster by their unit vectors, (m, d) -> (m,)."""
    ranks = np.full(len(vectors), np.nan)
    closest = np.max(vectors @ vectors[~free].T, axis=1, initial=0)  # (m,)
    left = free.copy()  # (m,)
    for rank in range(1, int(free.sum()) + 1):
        values = round_for_ties(centrality - penalty * closest**power)  # (m,)
        best = int(np.argmax(np.where(left, values, -np.inf)))
        ranks[best], left[best] = rank, False
        closest = np.maximum(closest, vectors @ vectors[best])
    return ranks
