"""Draws images from clusters of unequal probability, without replacement."""

import numpy as np

from presel.selection.arrays import BoolVector, FloatVector, IntVector, check_all, check_whole


def draw_from_clusters(
    log_weights: FloatVector,
    labels: IntVector,
    available: BoolVector,
    count: int,
    random_share: float,
    rng: np.random.Generator,
) -> IntVector:
    """Draws images without replacement, a share of them uniformly and the others cluster by cluster.

    Each of the others is drawn in two steps: a cluster that has images left, with a probability in proportion
    to exp(log_weights), and one of its images, uniformly.

    Args:
        log_weights: Finite, shape (C,); only their differences matter.
        labels: Cluster of each image, from 0 to C − 1, shape (n,).
        available: Whether an image may be drawn, shape (n,).
        count: Number of images to draw; all available ones if there are fewer.
        random_share: Share of the count that is drawn uniformly from all available images, 0 to 1, rounded.
        rng: Random number generator.

    Returns:
        Rows of the drawn images, ascending, shape (min(count, available.sum()),).

    Raises:
        ValueError: If a weight is not finite, the count is not a whole number of at least 0, or the share is
            not from 0 to 1.
    """
    check_all(np.isfinite(log_weights), log_weights, "log_weights", "must be finite")
    check_whole(count, "count", 0)
    if not 0 <= random_share <= 1:
        raise ValueError(f"random_share is {random_share}; it must be from 0 to 1")
    # In random order, so that the first images of a cluster are uniform draws from it.
    left = rng.permutation(np.flatnonzero(available))
    count = min(count, len(left))
    at_random = round(count * random_share)
    drawn, left = left[:at_random], left[at_random:]
    sizes = np.bincount(labels[left], minlength=len(log_weights))
    quotas = _draw_quotas(log_weights, sizes, count - at_random, rng)
    by_cluster = left[np.argsort(labels[left], kind="stable")]
    place = np.arange(len(left)) - np.searchsorted(labels[by_cluster], labels[by_cluster])
    return np.sort(np.concatenate([drawn, by_cluster[place < quotas[labels[by_cluster]]]]))


def _draw_quotas(
    log_weights: FloatVector, sizes: IntVector, count: int, rng: np.random.Generator
) -> IntVector:
    """Draws `count` clusters in proportion to exp(log_weights), each at most `sizes` times, (C,) -> (C,)."""
    quotas = np.zeros_like(sizes)
    while missing := count - int(quotas.sum()):
        room = np.flatnonzero(quotas < sizes)
        weights = np.exp(log_weights[room] - log_weights[room].max())
        # Draws beyond a cluster's size are repeated among the clusters that have room then.
        draws = rng.multinomial(missing, weights / weights.sum())
        quotas[room] = np.minimum(quotas[room] + draws, sizes[room])
    return quotas
