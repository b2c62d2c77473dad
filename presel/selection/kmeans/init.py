"""Initial centroids: greedy k-means++ and swaps in a low-dimensional sketch of the features.

The initial centroids decide the final inertia, and k-means++ on all rows in full dimension would cost more
than the k-means after it. So seeds are drawn by greedy k-means++ in a sketch of 64 dimensions: the 32 leading
principal components, and 32 random projections of the residual (Johnson-Lindenstrauss). Where the principal
components explain most of the variance, as in smooth features, Lloyd's algorithm also runs in the sketch
until it nearly converges. Where they do not, as in many unrelated groups, random projections distort which
groups are close, and Lloyd's algorithm runs on a sample of the rows in full dimension instead. Both use swaps
(`kmeans.swaps`).
"""

import math
from dataclasses import replace

import numpy as np

from presel.selection.arrays import Float32Matrix, IntVector
from presel.selection.feature_rows import FeatureRows
from presel.selection.kmeans.assignment import cluster_means
from presel.selection.kmeans.lloyd import Settings, lloyd

_PRINCIPAL = 32
_PROJECTIONS = 32
_BASIS_ROWS = 1024
_SKETCH_ROWS = 200_000
_SEEDING_ROWS_PER_CLUSTER = 30
_SAMPLE_ROWS_PER_CLUSTER = 50
_CANDIDATES = 3
_SWAP_ROUNDS = 3
# Share of the variance in the principal components from which on Lloyd's algorithm runs in the sketch.
_FAITHFUL = 0.5
# Passes and tolerance in the sketch, where a pass costs a tenth of one in full dimension.
_SKETCH_PASSES = 30
_SKETCH_TOLERANCE = 3e-4


def initial_centroids(rows: FeatureRows, n_clusters: int, settings: Settings) -> Float32Matrix:
    """Finds initial centroids, (C, d), for k-means; there must be at least C rows."""
    rng = settings.rng
    if len(rows) > max(_SKETCH_ROWS, n_clusters):
        rows = rows.subset(_draw(len(rows), max(_SKETCH_ROWS, n_clusters), rng))
    if n_clusters == 1:
        return cluster_means(rows, np.zeros(len(rows), dtype=np.int64), 1)
    sketch, faithful = _sketch(rows, rng)
    sample = _draw(len(rows), _SEEDING_ROWS_PER_CLUSTER * n_clusters, rng)
    seeds = sample[_k_means_plus_plus(sketch.take(sample), n_clusters, rng)]
    if faithful:
        converging = replace(settings, max_iterations=_SKETCH_PASSES, tolerance=_SKETCH_TOLERANCE)
        result = lloyd(sketch, sketch.take(seeds), converging, swap_rounds=_SWAP_ROUNDS)
        return cluster_means(rows, result.labels, n_clusters)
    sample = _draw(len(rows), _SAMPLE_ROWS_PER_CLUSTER * n_clusters, rng)
    swapping = replace(settings, max_iterations=_SWAP_ROUNDS + 1, tolerance=0.0)
    points = rows.subset(sample).for_many_passes()
    return lloyd(points, rows.take(seeds), swapping, swap_rounds=_SWAP_ROUNDS).centroids


def _draw(n_rows: int, wanted: int, rng: np.random.Generator) -> IntVector:
    if wanted >= n_rows:
        return np.arange(n_rows)
    return np.sort(rng.choice(n_rows, wanted, replace=False))


def _sketch(rows: FeatureRows, rng: np.random.Generator) -> tuple[FeatureRows, bool]:
    """Projects the vectors to 64 dimensions; vectors of fewer stay as they are.

    Also returns whether the sketch keeps distances well enough to run Lloyd's algorithm in it.
    """
    if rows.dimension <= _PRINCIPAL + _PROJECTIONS:
        return FeatureRows.trusted(np.concatenate([block for _, block in rows.blocks()])), True
    sample = rows.take(_draw(len(rows), _BASIS_ROWS, rng))
    sample = sample - sample.mean(axis=0)  # (s, d)
    principal = rng.standard_normal((rows.dimension, _PRINCIPAL), np.float32)  # (d, 32)
    for _ in range(3):  # power iterations
        principal = np.linalg.qr(sample.T @ (sample @ principal))[0]
    faithful = np.square(sample @ principal).sum() >= _FAITHFUL * np.square(sample).sum()
    projections = rng.standard_normal((rows.dimension, _PROJECTIONS), np.float32)  # (d, 32)
    projections /= np.float32(math.sqrt(_PROJECTIONS))
    projections -= principal @ (principal.T @ projections)
    basis = np.hstack([principal, projections])  # (d, 64)
    sketch = np.empty((len(rows), basis.shape[1]), dtype=np.float32)
    for place, block in rows.blocks():
        np.matmul(block, basis, out=sketch[place])
    return FeatureRows.trusted(sketch), bool(faithful)


def _k_means_plus_plus(points: Float32Matrix, n_clusters: int, rng: np.random.Generator) -> IntVector:
    """Greedy k-means++ (Arthur, 2007): each seed is the best of three drawn by squared distance, (C,)."""
    norms = np.einsum("ij,ij->i", points, points)  # (n,)
    chosen = np.empty(n_clusters, dtype=np.int64)
    chosen[0] = rng.integers(len(points))
    closest = np.maximum(norms + norms[chosen[0]] - 2 * (points @ points[chosen[0]]), 0)  # (n,)
    for number in range(1, n_clusters):
        cumulative = np.cumsum(closest, dtype=np.float64)  # (n,)
        drawn = np.searchsorted(cumulative, rng.random(_CANDIDATES) * cumulative[-1], side="right")
        candidates = np.minimum(drawn, len(points) - 1)  # (3,)
        distances = points[candidates] @ points.T  # (3, n)
        distances *= -2
        distances += norms
        distances += norms[candidates][:, None]
        np.clip(distances, 0, closest, out=distances)
        best = int(distances.sum(axis=1).argmin())
        closest = distances[best]
        chosen[number] = candidates[best]
    return chosen
