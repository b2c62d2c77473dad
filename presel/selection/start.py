"""Where k-means starts: k-means++ and swaps in a sketch of the features.

The quality of a start decides the inertia in the end, and a good start in full dimension costs as much as the
k-means after it. So it is found in a sketch of 64 numbers per row: the 32 leading principal directions, and
32 random projections of what these leave over (Johnson-Lindenstrauss), which keep distances right on average
where the spectrum decays slowly. There, greedy k-means++ on a subsample is followed by short runs of Lloyd's
algorithm, between which pairs of clusters that cost little to merge give a centroid to clusters that gain
much from a split: the mistakes that Lloyd's algorithm by itself cannot mend.
"""

import math
from dataclasses import replace

import numpy as np

from presel.selection.kmeans import Settings, cluster_means, lloyd
from presel.selection.rows import FeatureRows, Float32Matrix, IntVector
from presel.selection.swaps import swap

_PRINCIPAL = 32
_PROJECTIONS = 32
_BASIS_ROWS = 2048
_SKETCH_ROWS = 200_000
_SEEDING_ROWS_PER_CLUSTER = 30
_CANDIDATES = 3
_PASSES = 3
_SWAP_ROUNDS = 2


def starting_centroids(rows: FeatureRows, n_clusters: int, settings: Settings) -> Float32Matrix:
    """Finds a good start for k-means.

    Args:
        rows: n vectors.
        n_clusters: C, at most n.
        settings: Where the draws come from, and who searches the nearest centroid.

    Returns:
        Shape (C, d).
    """
    rng = settings.rng
    short = replace(settings, max_iterations=_PASSES, tolerance=0.0)
    if len(rows) > max(_SKETCH_ROWS, n_clusters):
        rows = rows.subset(_draw(len(rows), max(_SKETCH_ROWS, n_clusters), rng))
    if n_clusters == 1:
        return cluster_means(rows, np.zeros(len(rows), dtype=np.int64), 1)
    sketch = FeatureRows.trusted(_sketch(rows, rng))
    seeds = _draw(len(rows), _SEEDING_ROWS_PER_CLUSTER * n_clusters, rng)
    sample = sketch.take(seeds)
    centroids = sample[_k_means_plus_plus(sample, n_clusters, rng)]
    result = lloyd(sketch, centroids, short)
    for _ in range(_SWAP_ROUNDS):
        swapped = swap(sketch, result)
        if swapped is None:
            break
        result = lloyd(sketch, swapped, short)
    return cluster_means(rows, result.labels, n_clusters)


def _draw(n_rows: int, wanted: int, rng: np.random.Generator) -> IntVector:
    if wanted >= n_rows:
        return np.arange(n_rows)
    return np.sort(rng.choice(n_rows, wanted, replace=False))


def _sketch(rows: FeatureRows, rng: np.random.Generator) -> Float32Matrix:
    """Shortens the vectors to 64 numbers; shorter ones stay as they are."""
    if rows.dimension <= _PRINCIPAL + _PROJECTIONS:
        return np.concatenate([block for _, block in rows.blocks()])
    sample = rows.take(_draw(len(rows), _BASIS_ROWS, rng))
    sample = sample - sample.mean(axis=0)
    principal = _gaussian(rng, rows.dimension, _PRINCIPAL)
    for _ in range(3):
        principal = np.linalg.qr(sample.T @ (sample @ principal))[0]
    projections = _gaussian(rng, rows.dimension, _PROJECTIONS) / np.float32(math.sqrt(_PROJECTIONS))
    projections -= principal @ (principal.T @ projections)
    basis = np.hstack([principal, projections])
    sketch = np.empty((len(rows), basis.shape[1]), dtype=np.float32)
    for place, block in rows.blocks():
        np.matmul(block, basis, out=sketch[place])
    return sketch


def _gaussian(rng: np.random.Generator, rows: int, columns: int) -> Float32Matrix:
    return rng.standard_normal((rows, columns), dtype=np.float32)


def _k_means_plus_plus(points: Float32Matrix, n_clusters: int, rng: np.random.Generator) -> IntVector:
    """Picks points far apart: the best of three drawn by squared distance (k-means++, Arthur 2007)."""
    norms = np.einsum("ij,ij->i", points, points)
    chosen = np.empty(n_clusters, dtype=np.int64)
    chosen[0] = rng.integers(len(points))
    closest = np.maximum(norms + norms[chosen[0]] - 2 * (points @ points[chosen[0]]), 0)
    for number in range(1, n_clusters):
        cumulative = np.cumsum(closest, dtype=np.float64)
        drawn = np.searchsorted(cumulative, rng.random(_CANDIDATES) * cumulative[-1], side="right")
        candidates = np.minimum(drawn, len(points) - 1)
        distances = points[candidates] @ points.T
        distances *= -2
        distances += norms
        distances += norms[candidates][:, None]
        np.clip(distances, 0, closest, out=distances)
        best = int(distances.sum(axis=1).argmin())
        closest = distances[best]
        chosen[number] = candidates[best]
    return chosen
