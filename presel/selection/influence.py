"""Selection by gradients: how far a step on one sample lowers the loss of others (ICONS, LESS, TIVE).

To first order, a step along the gradient of sample z lowers the loss of z' by the product of their gradients
(Pruthi et al., 2020); the methods normalize both, so that influence is a cosine. Vectors are gradients of
single samples, projected or not.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from presel.selection.arrays import FloatMatrix, FloatVector, IntVector, round_for_ties
from presel.selection.feature_rows import FeatureRows

# Floats that are in memory at once, 32 MB in float64.
_BLOCK = 2**22


def unit_gradients(gradients: npt.NDArray[np.floating]) -> tuple[FeatureRows, FloatVector]:
    """Normalizes gradients, and measures their norms.

    Args:
        gradients: Finite, shape (n, d); may be a memory map.

    Returns:
        The gradients divided by their norms, which are read in blocks, and the norms, (n,). A gradient of 0,
        of a sample that the model answers with certainty, stays 0, and has no influence.
    """
    norms = np.empty(len(gradients))
    step = max(1, _BLOCK // gradients.shape[1])
    for start in range(0, len(gradients), step):
        block = gradients[start : start + step].astype(np.float64)
        norms[start : start + step] = np.sqrt(np.einsum("ij,ij->i", block, block))
    scale = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    return FeatureRows.trusted(gradients, scale=scale.astype(np.float32)), norms


def mean_direction(rows: FeatureRows) -> FloatVector:
    """The mean of unit gradients, (n, d) -> (d,): the mean cosine to all of them is a product with it."""
    total = np.zeros(rows.dimension)
    for _, block in rows.blocks():
        total += block.sum(axis=0, dtype=np.float64)
    direction: FloatVector = total / len(rows)
    return direction


def influence(rows: FeatureRows, directions: FloatMatrix) -> FloatMatrix:
    """Mean cosine of each sample to each group of samples.

    Args:
        rows: Unit gradients of n samples, (n, d).
        directions: The `mean_direction` of each of K groups, shape (K, d).

    Returns:
        Shape (n, K), -1 to 1, rounded to nine decimals, so that equal samples have equal influence.
    """
    found = np.empty((len(rows), len(directions)))
    for place, block in rows.blocks():
        found[place] = block.astype(np.float64) @ directions.T
    return round_for_ties(found)


def target_influence(
    gradients: npt.NDArray[np.floating], validation: npt.NDArray[np.floating], tasks: Sequence[str]
) -> FloatMatrix:
    """Influence of each sample of a pool on each target task.

    Args:
        gradients: Those of the pool, shape (n, d).
        validation: Those of validation samples, shape (m, d).
        tasks: The validation samples' tasks, (m,).

    Returns:
        Mean cosine to the validation samples of each task, tasks in ascending order, shape (n, K).
    """
    rows, _ = unit_gradients(validation)
    names = np.asarray(tasks)
    directions = [mean_direction(rows.subset(np.flatnonzero(names == name))) for name in np.unique(names)]
    return influence(unit_gradients(gradients)[0], np.stack(directions))


def votes(influences: FloatMatrix, share: float) -> IntVector:
    """Number of target tasks that vote for each sample (ICONS).

    A task votes for those samples whose influence on it reaches its (1 - share) quantile, interpolated
    linearly.

    Args:
        influences: Shape (n, K).
        share: Share of the pool to select, above 0, at most 1.

    Returns:
        Shape (n,), 0 to K.
    """
    thresholds = np.quantile(influences, 1 - share, axis=0)  # (K,)
    found: IntVector = (influences >= thresholds).sum(axis=1)
    return found


def draw(scores: FloatVector, count: int, scale: float, rng: np.random.Generator) -> IntVector:
    """Draws samples one after the other without replacement, each by the softmax of those left (TIVE).

    By the largest of scale · score + Gumbel noise, which is the same distribution (Kool et al., 2019).

    Args:
        scores: Finite, shape (n,).
        count: Samples to draw, at most n.
        scale: Factor of the scores inside the softmax; with 0 the draw is uniform.
        rng: Source of the noise.

    Returns:
        Rows in the order of drawing, shape (count,).
    """
    return np.argsort(-(scale * scores + rng.gumbel(size=len(scores))), kind="stable")[:count]
