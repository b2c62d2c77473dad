"""How far clusters of a task that is divided into cells lie from those of one k-means on all of it.

    python -m experiments.scale.quality --folder FOLDER [--images 100000] [--dimension 768] [--cells 5]

One drawn task, one cluster for 100 images: plain k-means; hierarchical, as `auto` clusters a task that fits
into memory; and in cells. Prints inertia, the mean centrality of the 15 % chosen, and CPU seconds, which
cover the rest only if the command was killed. FOLDER may hold results of other settings.
"""

import argparse
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from experiments.scale.drawn import DrawnFeatures, DrawnPool
from experiments.scale.measure import BUDGET, table
from presel.selection import FeatureRows, clustering, most_central, number_of_clusters
from presel.selection.kmeans.assignment import cluster_means
from presel.stages import cells
from presel.stages.centrality import CentralityStage, Neighbors
from presel.stages.clusters import Clustering, ClustersStage
from presel.stages.reference import ReferenceStage
from presel.storage.store import Store

_NEVER = 10**12


def main() -> None:
    """Reads the command line, clusters, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--cells", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=["plain", "hierarchical", "cells"])
    options = parser.parse_args()
    n_clusters = number_of_clusters(options.images)
    features = DrawnFeatures(pool=DrawnPool(n_images=options.images, n_tasks=1), dimension=options.dimension)

    def clusters(how: Clustering, clusters_per_cell: int = cells.CLUSTERS_PER_CELL) -> ClustersBySizes:
        return ClustersBySizes(
            features=features,
            clustering=how,
            clusters_per_cell=clusters_per_cell,
            # A task of 100,000 images is the largest that `auto` clusters plainly.
            hierarchical_above=min(clustering.HIERARCHICAL_ABOVE, n_clusters - 1),
        )

    ways = {
        "plain": clusters(Clustering(backend="numpy")),
        "hierarchical": clusters(Clustering(divide_above=_NEVER)),
        "cells": clusters(Clustering(divide_above=options.images - 1), math.ceil(n_clusters / options.cells)),
    }
    store = Store(options.folder)
    rows = [{"clusters": name, **quality(store, ways[name])} for name in options.ways]
    print(table(rows))
    print(json.dumps({"images": options.images, "dimension": options.dimension, "rows": rows}))


@dataclass(frozen=True, kw_only=True)
class ClustersBySizes(ClustersStage):
    """Clusters by other sizes than the product's, which are constants there and part of the key here.

    Attributes:
        clusters_per_cell: Clusters of each cell, about.
        hierarchical_above: Clusters of a task or cell above which they are hierarchical.
    """

    clusters_per_cell: int
    hierarchical_above: int

    def compute(self, store: Store, folder: Path) -> dict[str, Any]:
        """Clusters the task, and measures the CPU seconds, which the manifest keeps."""
        before = os.times()
        with (
            patch.object(cells, "CLUSTERS_PER_CELL", self.clusters_per_cell),
            patch.object(clustering, "HIERARCHICAL_ABOVE", self.hierarchical_above),
        ):
            measured = super().compute(store, folder)
        return {**measured, "cpu_seconds": sum(os.times()[:2]) - sum(before[:2])}


def quality(store: Store, stage: ClustersBySizes) -> dict[str, Any]:
    """Clusters the task, and measures the result."""
    reference = ReferenceStage(pool=stage.pool, share=0.05, seed=0)
    scores = CentralityStage(clusters=stage, reference=reference, neighbors=Neighbors())
    scored = store.load(scores)
    vectors = store.load(stage.features).rows_of(scored["id"])
    free = scored["centrality"].notna()
    chosen = most_central(scored["centrality"], scored["cluster"], free, int(BUDGET * len(scored)))
    return {
        "inertia": round(inertia(vectors, scored["cluster"].to_numpy()), 1),
        "centrality_of_chosen": round(float(scored["centrality"].to_numpy()[chosen].mean()), 5),
        "cpu_seconds": round(store.manifest(stage)["measured"]["cpu_seconds"], 1),
    }


def inertia(rows: FeatureRows, labels: np.ndarray) -> float:
    """Sum of squared distances to the means of the clusters, the same measure for all."""
    means = cluster_means(rows, labels, labels.max() + 1)  # (C, d)
    blocks = rows.blocks()
    return float(
        sum(np.square(block - means[labels[place]]).sum(dtype=np.float64) for place, block in blocks)
    )


if __name__ == "__main__":
    main()
