"""Draws uncertain images that differ from each other: k-means++ seeding, weighted by uncertainty."""

import numpy as np
import numpy.typing as npt

from presel.selection.arrays import BoolVector, FloatVector, IntVector, check_all, check_whole
from presel.selection.feature_rows import FeatureRows


def uncertain_and_diverse(
    features: "npt.ArrayLike | FeatureRows",
    uncertainty: FloatVector,
    available: BoolVector,
    bought: BoolVector,
    budget: int,
    rng: np.random.Generator,
    beta: float = 1.0,
) -> IntVector:
    """Draws images one by one, by uncertainty ** beta times the squared distance to the nearest one before.

    This is the seeding of k-means++ (Arthur and Vassilvitskii, 2007), by which BADGE chooses (Ash et al.,
    ICLR 2020), on weighted points.

    Args:
        features: All images of the task, shape (n, d).
        uncertainty: Finite and at least 0 where an image is available, shape (n,).
        available: Which images can be drawn, shape (n,).
        bought: Which images new ones should differ from already, shape (n,).
        budget: Number of images to draw; all available ones if there are fewer.
        rng: Random number generator.
        beta: 0 ignores uncertainty, high values ignore the distance.

    Returns:
        Row numbers in the order of drawing. If nothing is bought, uncertainty alone decides the first. Once
        all that is left has no uncertainty or equals a chosen image, the rest is drawn uniformly.

    Raises:
        ValueError: If an uncertainty is negative or not finite, `beta` is not finite and at least 0, the
            budget is not a whole number of at least 0, or a feature vector is refused.
    """
    rows = FeatureRows.of(features)
    doubt = np.where(available, uncertainty, 0.0)  # (n,)
    check_all(np.isfinite(doubt) & (doubt >= 0), doubt, "uncertainty", "it must be finite and at least 0")
    if not (np.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta is {beta}; it must be finite and at least 0")
    check_whole(budget, "the budget", least=0)
    points = rows.take(np.arange(len(rows)))  # (n, d)
    squares = np.einsum("ij,ij->i", points, points)  # (n,)

    def distances_to(row: int) -> FloatVector:
        """Squared distances of all images to one, (n,), rounded so that copies are exactly 0 apart."""
        squared: FloatVector = np.round(squares + squares[row] - 2 * (points @ points[row]), 6)
        return squared.clip(min=0)

    # Relative to the largest, so that no power overflows.
    weights = (doubt / (doubt.max() or 1)) ** beta  # (n,)
    nearest = np.full(len(points), np.inf)  # (n,), squared distance to the nearest image chosen or bought
    for row in np.flatnonzero(bought).tolist():
        nearest = np.minimum(nearest, distances_to(row))
    left = available.astype(np.float64)  # (n,)
    drawn = np.empty(min(int(budget), int(available.sum())), dtype=np.int64)
    for place in range(len(drawn)):
        chances = left * weights * np.where(np.isinf(nearest), 1, nearest)  # (n,)
        if not chances.any():
            chances = left
        row = int(rng.choice(len(points), p=chances / chances.sum()))
        drawn[place] = row
        left[row] = 0
        nearest = np.minimum(nearest, distances_to(row))
    return drawn
