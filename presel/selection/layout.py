"""A layout of feature vectors in the plane, to draw the images of a pool as a map."""

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from presel.selection.arrays import Float32Matrix
from presel.selection.feature_rows import FeatureRows

# Vectors that t-SNE lays out, whose time grows faster than their number: 5,000 take half a minute.
LAID_OUT = 5000
# Principal components that distances are measured in (van der Maaten and Hinton, 2008, reduce to 50 too).
_COMPONENTS = 50
# Perplexity of t-SNE, lowered where there are too few vectors for it.
_PERPLEXITY = 30.0
# Laid-out vectors that each of the others is placed among.
_NEIGHBORS = 5
# So few vectors have no neighborhoods, and are placed in a row.
_FEW = 3


def layout(features: npt.ArrayLike | FeatureRows) -> Float32Matrix:
    """Places similar vectors near each other, by t-SNE (van der Maaten and Hinton, 2008).

    A random sample of `LAID_OUT` vectors is laid out, and each of the others is placed among its nearest ones
    of the sample. Distances within a neighborhood mean something, those between distant groups do not.

    Args:
        features: Vectors, (n, d).

    Returns:
        Coordinates from 0 to 1, (n, 2). The same vectors give the same ones on any number of CPUs.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    rows = FeatureRows.of(features)
    if len(rows) <= _FEW:
        line = np.linspace(0, 1, len(rows), dtype=np.float32)
        return np.stack([line, np.full_like(line, 0.5)], axis=1)
    sample = np.arange(len(rows))
    if len(rows) > LAID_OUT:
        sample = np.sort(np.random.default_rng(0).choice(len(rows), LAID_OUT, replace=False))
    # The order of the terms of a sum, and so its rounding, depends on the number of threads.
    with threadpool_limits(1):
        vectors = rows.take(sample)  # (m, d)
        with np.errstate(invalid="ignore"):  # equal vectors have no variance to explain
            components = PCA(min(_COMPONENTS, *vectors.shape), svd_solver="full").fit(vectors)
        reduced = components.transform(vectors)  # (m, c)
        placed = _scaled(_tsne(reduced))  # (m, 2)
        if len(sample) == len(rows):
            return placed
        among = NearestNeighbors(n_neighbors=_NEIGHBORS, algorithm="brute").fit(reduced)
        found = np.empty((len(rows), 2), np.float32)
        for place, block in rows.blocks():
            distances, neighbors = among.kneighbors(components.transform(block))  # (b, 5)
            found[place] = _between(placed[neighbors], distances)
    found[sample] = placed
    return found


def _tsne(vectors: Float32Matrix) -> Float32Matrix:
    """Coordinates, (m, 2), of vectors of principal components, (m, c)."""
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    # Scaled, because t-SNE moves from where it starts: small at first, and not at all from a single point.
    start = vectors[:, :2] if vectors.shape[1] > 1 else np.pad(vectors, ((0, 0), (0, 1)))
    start = (start / (start[:, 0].std() or 1) * 1e-4).astype(np.float32)
    placed: Float32Matrix = TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(vectors)
    return placed


def _between(places: Float32Matrix, distances: Float32Matrix) -> Float32Matrix:
    """Means of neighbors' places, (b, k, 2), weighed by their distances, (b, k): the nearest counts most."""
    nearest, furthest = distances[:, :1], distances[:, -1:]
    scale = np.maximum((furthest - nearest) / 3, 1e-12)
    weights = np.exp((nearest - distances) / scale)  # from 1 to exp(-3)
    means: Float32Matrix = np.einsum("bk,bkc->bc", weights / weights.sum(axis=1, keepdims=True), places)
    return means


def _scaled(places: Float32Matrix) -> Float32Matrix:
    """Fits coordinates, (m, 2), into the unit square, with their proportions."""
    low, high = places.min(axis=0), places.max(axis=0)
    side = (high - low).max() or np.float32(1)
    scaled: Float32Matrix = 0.5 + (places - (low + high) / 2) / side
    # Rounding can lead out of the square.
    return scaled.clip(0, 1)
