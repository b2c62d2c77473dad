"""Selection beside the plain procedure, on the same features in one run.

- `python experiments/benchmarks/selection.py cluster`: 20,000 × 768, C = 200, k-means beside scikit-learn's,
  on a mixture, on smooth features and on tight groups.
- `python experiments/benchmarks/selection.py stage`: 100,000 × 768 in ten tasks, the whole stage.
- `python experiments/benchmarks/selection.py disk`: 1,000,000 × 768 in ten tasks from disk, time and memory.
- `python experiments/benchmarks/selection.py scaling`: one task of 1e4, 1e5, 1e6, cost and quality of
  hierarchical k-means.
- `python experiments/benchmarks/selection.py all`.

The plain procedure is scikit-learn's KMeans with its default start on each task, then a Python loop over
clusters with a full similarity matrix. Features are seeded and L2-normalized, a mixture where nothing else is
said. Prints a table and, last, one line of JSON. `--shrink 100` divides all sizes, to try it out. `--folder`
takes the files of `disk` and `scaling` (3 GB at full size), `--keep` leaves them there.
"""

import argparse
import math
import multiprocessing
import resource
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import Row, last_line, table, timed
from sklearn.cluster import KMeans

from presel import select
from presel.selection import (
    ClusterBackend,
    FeatureRows,
    allocate_clusters,
    cluster,
    clustering,
    most_central,
    number_of_clusters,
    task_centrality,
)

Matrix = npt.NDArray[np.float32]

DIMENSION = 768
TASKS = 10
BUDGET = 0.1
_BACKENDS: tuple[ClusterBackend, ...] = ("auto", "faiss", "numpy")


def mixture(n: int, seed: int) -> Iterator[Matrix]:
    """Draws n unit vectors in blocks: components of unequal size, as many as 1.5 per cluster to be made.

    Each component varies in 32 directions of its own pool and a little in all, as image features do.
    """
    rng = np.random.default_rng(seed)
    components = max(3, n * 3 // 200)
    centers = rng.standard_normal((components, DIMENSION), dtype=np.float32)
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    common = rng.standard_normal((32, DIMENSION), dtype=np.float32) * np.float32(
        1.2 / math.sqrt(32 * DIMENSION)
    )
    cumulative = np.cumsum(rng.dirichlet(np.full(components, 0.7)))
    for start in range(0, n, 20_000):
        size = min(20_000, n - start)
        component = np.minimum(np.searchsorted(cumulative, rng.random(size)), components - 1)
        block = centers[component]
        block += rng.standard_normal((size, 32), dtype=np.float32) @ common
        block += rng.standard_normal((size, DIMENSION), dtype=np.float32) * np.float32(
            0.42 / math.sqrt(DIMENSION)
        )
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        yield block


def in_memory(n: int, seed: int = 0) -> Matrix:
    """Draws n vectors at once."""
    return np.concatenate(list(mixture(n, seed)))


def smooth(n: int, seed: int = 0) -> Matrix:
    """Draws n vectors without groups: a bent surface of ten dimensions."""
    rng = np.random.default_rng(seed)
    place, bend, spread = (
        rng.standard_normal(shape, dtype=np.float32) for shape in ((n, 10), (10, 64), (64, DIMENSION))
    )
    return unit(np.tanh(place @ bend * np.float32(1.5 / math.sqrt(10))) @ spread)


def groups(n: int, seed: int = 0) -> Matrix:
    """Draws n vectors in tight unrelated groups, two per cluster to be made: the worst case of a sketch."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((max(4, n // 50), DIMENSION), dtype=np.float32)
    noise = rng.standard_normal((n, DIMENSION), dtype=np.float32)
    return unit(centers[rng.integers(0, len(centers), n)] + noise / 2)


def unit(vectors: Matrix) -> Matrix:
    """L2-normalizes vectors."""
    normalized: Matrix = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalized


def on_disk(path: Path, n: int, parts: int) -> None:
    """Writes n vectors to a .npy file, in `parts` mixtures one after the other."""
    if path.exists() and np.load(path, mmap_mode="r").shape == (n, DIMENSION):
        return
    unfinished = path.with_suffix(".unfinished")
    file = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=(n, DIMENSION))
    row = 0
    for part in range(parts):
        for block in mixture(n // parts, part):
            file[row : row + len(block)] = block
            row += len(block)
    file.flush()
    unfinished.rename(path)


def inertia(features: Matrix, labels: npt.NDArray[np.int64]) -> float:
    """Sums squared distances to the means of the clusters, the same measure for everybody."""
    order = np.argsort(labels, kind="stable")
    total = 0.0
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        total += float(((features[members] - features[members].mean(axis=0)) ** 2).sum(dtype=np.float64))
    return total


def cluster_sizes(shrink: int) -> list[Row]:
    """20,000 x 768 into 200 clusters, beside scikit-learn's default KMeans, on three kinds of features."""
    rows: list[Row] = []
    kinds: dict[str, tuple[Callable[[int], Matrix], tuple[ClusterBackend, ...]]] = {
        "mixture": (in_memory, _BACKENDS),
        "smooth": (smooth, ("auto",)),
        "groups": (groups, ("auto",)),
    }
    for kind, (draw, backends) in kinds.items():
        features = draw(20_000 // shrink)
        n_clusters = number_of_clusters(len(features))
        # Libraries load and threads start outside the clock.
        for backend in backends:
            cluster(features[:200], 2, backend=backend)
        model, plain_seconds = timed(partial(KMeans(n_clusters, random_state=0).fit, features))
        plain_inertia = inertia(features, model.labels_)
        rows.append({"what": f"{kind}, scikit-learn KMeans", "seconds": plain_seconds, "inertia_ratio": 1.0})
        for backend in backends:
            (labels, _), seconds = timed(partial(cluster, features, n_clusters, backend=backend))
            rows.append(
                {
                    "what": f"{kind}, cluster {backend}",
                    "seconds": seconds,
                    "speedup": plain_seconds / seconds,
                    "inertia_ratio": inertia(features, labels) / plain_inertia,
                }
            )
    return rows


def plain_selection(features: Matrix, tasks: npt.NDArray[np.int64], budget: int) -> list[int]:
    """The procedure as one would write it first: KMeans, then a loop over clusters."""
    chosen: list[int] = []
    for task in np.unique(tasks):
        rows = np.flatnonzero(tasks == task)
        vectors = features[rows]
        labels = KMeans(number_of_clusters(len(rows)), random_state=0).fit(vectors).labels_
        quotas = allocate_clusters(np.bincount(labels), round(budget * len(rows) / len(tasks)))
        for label, quota in enumerate(quotas):
            members = np.flatnonzero(labels == label)
            similarity = vectors[members] @ vectors[members].T
            np.fill_diagonal(similarity, -np.inf)
            k = min(5, len(members) - 1)
            scores = [np.sort(row)[-k:].mean() if k else 1.0 for row in similarity]
            chosen.extend(rows[members[np.argsort(scores)[::-1][:quota]]])
    return chosen


def whole_stage(shrink: int) -> list[Row]:
    """100,000 x 768 in ten tasks: cluster, allocate, centrality, pick."""
    per_task = 10_000 // shrink
    features = np.concatenate([in_memory(per_task, seed) for seed in range(TASKS)])
    tasks = np.repeat(np.arange(TASKS), per_task)
    budget = round(BUDGET * len(features))
    images = list(range(len(features)))
    cluster(features[:200], 2)
    chosen, seconds = timed(lambda: select(images, tasks.tolist(), features=features, budget=budget))
    plain, plain_seconds = timed(lambda: plain_selection(features, tasks, budget))
    return [
        {"what": "plain procedure", "n": len(features), "seconds": plain_seconds, "chosen": len(plain)},
        {
            "what": "presel.select",
            "n": len(features),
            "seconds": seconds,
            "speedup": plain_seconds / seconds,
            "chosen": len(chosen),
        },
    ]


def from_disk(shrink: int, folder: Path) -> list[Row]:
    """1,000,000 x 768 in ten tasks, features memory-mapped, in a process of its own to measure its memory."""
    n = 1_000_000 // shrink // TASKS * TASKS
    path = folder / f"features_{n}_tasks.npy"
    on_disk(path, n, TASKS)
    row = in_own_process(_select_from_file, path)
    return [row | {"memory_ratio": row["peak_gb"] * 1e9 / path.stat().st_size}]


def _select_from_file(path: Path) -> Row:
    features = np.load(path, mmap_mode="r")
    tasks = np.repeat(np.arange(TASKS), len(features) // TASKS).tolist()
    images = range(len(features))
    budget = round(BUDGET * len(features))
    chosen, seconds = timed(lambda: select(images, tasks, features=features, budget=budget))
    return {"what": "presel.select, from disk", "n": len(features), "seconds": seconds, "chosen": len(chosen)}


def scaling(shrink: int, folder: Path, plain_up_to: int) -> list[Row]:
    """One task of 1e4, 1e5, 1e6 images: hierarchical clustering and choice; plain k-means beside at 1e5."""
    rows: list[Row] = []
    for n in (10_000 // shrink, 100_000 // shrink, 1_000_000 // shrink):
        path = folder / f"features_{n}_one.npy"
        on_disk(path, n, 1)
        rows.append(in_own_process(_one_task, path, "hierarchical"))
        if n == 100_000 // shrink and n <= plain_up_to:
            rows.append(in_own_process(_one_task, path, "plain"))
            for measure in ("inertia", "mean_centrality"):
                rows[-2][f"{measure}_ratio"] = rows[-2][measure] / rows[-1][measure]
    grown = [row for row in rows if row["what"].endswith("hierarchical")]
    logs = np.log([[row["n"], row["seconds"]] for row in grown])
    rows.append({"what": "exponent of the cost", "exponent": float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])})
    return rows


def _one_task(path: Path, method: str) -> Row:
    features = np.load(path, mmap_mode="r")
    n = len(features)
    clustering.HIERARCHICAL_ABOVE = 0 if method == "hierarchical" else n
    cluster(np.array(features[:200]), 2)
    available = np.ones(n, dtype=np.bool_)

    def stage() -> tuple[Any, Any, Any]:
        checked = FeatureRows(features)
        labels, _ = cluster(checked, number_of_clusters(n))
        scores = task_centrality(checked, labels, available)
        return labels, scores, most_central(scores, labels, available, round(BUDGET * n))

    (labels, scores, picks), seconds = timed(stage)
    return {
        "what": f"one task, {method}",
        "n": n,
        "seconds": seconds,
        "inertia": inertia(features, labels),
        "mean_centrality": float(scores[picks].mean()),
    }


def in_own_process(work: Callable[..., Row], *arguments: Any) -> Row:
    """Runs a measurement in a fresh process and adds its peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_with_peak, (work, arguments))


def _with_peak(work: Callable[..., Row], arguments: tuple[Any, ...]) -> Row:
    row = work(*arguments)
    return row | {"peak_gb": peak_bytes() / 1e9}


def peak_bytes() -> int:
    """Reads the process's largest resident size; pages of mapped files count too."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a child's maximum starts at its parent's.
        return next(int(line.split()[1]) * 1024 for line in status.open() if line.startswith("VmHWM"))
    # macOS reports bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["cluster", "stage", "disk", "scaling", "all"])
    parser.add_argument("--shrink", type=int, default=1, help="divide all sizes by this")
    parser.add_argument("--folder", type=Path, help="where large files go; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="leave the files in --folder for the next run")
    parser.add_argument(
        "--plain-up-to", type=int, default=100_000, help="largest single task for plain k-means"
    )
    options = parser.parse_args()
    if options.keep and options.folder is None:
        parser.error("--keep needs --folder")
    chosen = ["cluster", "stage", "disk", "scaling"] if options.what == "all" else [options.what]
    results: dict[str, list[Row]] = {}
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=None if options.keep else options.folder) as temporary:
        folder = options.folder if options.keep else Path(temporary)
        studies: dict[str, Callable[[], list[Row]]] = {
            "cluster": lambda: cluster_sizes(options.shrink),
            "stage": lambda: whole_stage(options.shrink),
            "disk": lambda: from_disk(options.shrink, folder),
            "scaling": lambda: scaling(options.shrink, folder, options.plain_up_to),
        }
        for name in chosen:
            results[name] = studies[name]()
            print(f"\n{name}\n{table(results[name])}", flush=True)
    print(last_line(shrink=options.shrink, **results))


if __name__ == "__main__":
    main()
