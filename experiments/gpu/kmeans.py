"""K-means of many features: the search on the GPU by torch, by faiss if it is installed, and on the CPU.

    python experiments/gpu/kmeans.py [--images 1000000]

Clusters features of 768 dimensions, drawn on the GPU around 1.5 times as many centers as clusters are made,
one cluster for 100 images, by presel's hierarchical k-means. presel itself searches by faiss or NumPy: torch
is tried by exchanging the search.
"""

import argparse
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from common import Rows, table, timed

from presel.models.hardware import device_for
from presel.selection import FeatureRows, number_of_clusters
from presel.selection.arrays import Float32Matrix, Float32Vector, IntVector
from presel.selection.kmeans.hierarchical import hierarchical
from presel.selection.kmeans.lloyd import Settings
from presel.selection.kmeans.search import MakeSearch, Search, faiss_search, numpy_search

_DIMENSION = 768
_DRAWN_AT_ONCE = 100_000


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--rows", type=Path, help="file to which each row is appended at once")
    options = parser.parse_args()
    features, n_clusters = drawn(options.images), number_of_clusters(options.images)
    searches: dict[str, MakeSearch] = {"torch": torch_search}
    if find_spec("faiss"):
        searches["faiss"] = faiss_search
    searches["numpy"] = numpy_search
    rows = Rows(options.rows)
    for name, search in searches.items():
        # The library starts outside the clock.
        search(features[:2])(features[:2])
        settings = Settings(search, np.random.default_rng(0), max_iterations=25, tolerance=5e-3)
        found, seconds = timed(partial(hierarchical, FeatureRows(features), n_clusters, settings))
        inertia = float(found.distances.sum(dtype=np.float64))
        rows.add(name, images=options.images, clusters=n_clusters, seconds=seconds, inertia=inertia)
    print(table(rows))


def drawn(n: int) -> Float32Matrix:
    """Draws n unit vectors around centers, on the GPU if there is one."""
    device = device_for("auto")
    generator = torch.Generator(device).manual_seed(0)
    n_centers = max(3, n * 3 // 200)
    centers = torch.randn(n_centers, _DIMENSION, device=device, generator=generator)
    features = np.empty((n, _DIMENSION), dtype=np.float32)
    for start in range(0, n, _DRAWN_AT_ONCE):
        block = features[start : start + _DRAWN_AT_ONCE]
        chosen = torch.randint(n_centers, (len(block),), device=device, generator=generator)
        noise = torch.randn(len(block), _DIMENSION, device=device, generator=generator)
        block[:] = torch.nn.functional.normalize(centers[chosen] + noise / 2).cpu().numpy()
    return features


def torch_search(centroids: Float32Matrix) -> Search:
    """Searches by a matrix product on the GPU, if there is one."""
    device = device_for("auto")
    among = torch.from_numpy(centroids).to(device)  # (C, d)
    half_norms = among.square().sum(dim=1) / 2  # (C,)

    def nearest(rows: Float32Matrix) -> tuple[IntVector, Float32Vector]:
        points = torch.from_numpy(np.ascontiguousarray(rows)).to(device)  # (n, d)
        # |x - c|² = |x|² - 2 (x·c - |c|²/2): the nearest centroid has the largest bracket.
        best, labels = (points @ among.T - half_norms).max(dim=1)  # (n,), (n,)
        distances = (points.square().sum(dim=1) - 2 * best).clamp_min(0)  # (n,)
        return labels.cpu().numpy(), distances.cpu().numpy()

    return nearest


if __name__ == "__main__":
    main()
