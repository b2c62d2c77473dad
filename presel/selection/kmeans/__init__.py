"""K-means; the entry point is `presel.selection.cluster`.

Own code because the k-means of scikit-learn and faiss copy the features to float32 in memory. scikit-learn's
also leaves clusters empty among equal vectors, may label otherwise on another number of CPU cores, and takes
about 17 times as long on two cores (`experiments/benchmarks`).

Modules, from the core outward:
    search: Nearest-centroid search, by NumPy or by faiss on GPUs: the part that takes the time.
    assignment: One pass over the rows: labels, distances, cluster means, refilled empty clusters.
    lloyd: Lloyd's algorithm, also in its spherical form.
    swaps: Moves centroids out of the local minima in which Lloyd's algorithm stops.
    init: Initial centroids by k-means++ and swaps in a low-dimensional sketch of the features.
    hierarchical: K-means for many clusters: coarse cells first, then k-means inside each cell.
    refine: Repairs clusters that the borders of these cells cut.
"""
