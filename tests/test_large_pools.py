"""Pools whose features do not fit into memory, and tasks that are clustered cell by cell: small here."""

import json
import shutil
import threading
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from experiments.scale import quality
from experiments.scale.drawn import DrawnFeatures, DrawnPool, DrawnRelevance
from presel.distributed.executors import LocalExecutor
from presel.errors import PreselError
from presel.selection import ClusterBackend, number_of_clusters, threads
from presel.selection.arrays import FloatMatrix, IntVector
from presel.selection.feature_rows import FeatureRows, Features
from presel.stages import cells, centrality, clusters, feature_groups
from presel.stages.centrality import CentralityStage, Neighbors
from presel.stages.clusters import Clustering, ClustersStage
from presel.stages.feature_groups import FeatureGroups
from presel.stages.reference import ReferenceStage
from presel.stages.selection import SelectionStage
from presel.storage.executor import Sharded
from presel.storage.files import (
    map_array,
    map_new_array,
    read_arrays,
    write_array,
    write_arrays,
    write_table,
)
from presel.storage.shards import Shards
from presel.storage.stage import identity
from presel.storage.store import Store
from presel.strategies.presel import PreSel
from tests.selection.mixtures import mixture

POOL = DrawnPool(n_images=3000, n_tasks=3)
FEATURES = DrawnFeatures(pool=POOL, dimension=24)


@dataclass(frozen=True, kw_only=True)
class Backwards(DrawnPool):
    """The drawn pool with its last record first."""

    def compute(self, store: Store, folder: Path) -> None:
        super().compute(store, folder)
        self.write(folder, self.load(folder)[::-1])


@dataclass(frozen=True, kw_only=True)
class BackwardsFeatures(DrawnFeatures):
    """The drawn features in that order."""

    def compute(self, store: Store, folder: Path) -> None:
        ids, vectors = store.load(FEATURES)
        write_table(folder / "ids.parquet", ids[::-1].to_frame("id"))
        write_array(folder / "features.npy", np.ascontiguousarray(vectors[::-1]))


BACKWARDS = BackwardsFeatures(pool=Backwards(n_images=3000, n_tasks=3), dimension=24)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of features is small enough to be read in place."""
    monkeypatch.setattr(feature_groups, "IN_PLACE_BYTES", 0)
    monkeypatch.setattr(feature_groups, "_BLOCK", 700)


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> Clustering:
    """Tasks above 500 images are divided into cells of about 300."""
    monkeypatch.setattr(cells, "CLUSTERS_PER_CELL", 3)
    return Clustering(divide_above=500)


def clustered(store: Store, clustering: Clustering, features: DrawnFeatures = FEATURES) -> pd.DataFrame:
    return store.load(ClustersStage(features=features, clustering=clustering))


def selection() -> SelectionStage:
    reference = ReferenceStage(pool=POOL, share=0.05, seed=0)
    labels = ClustersStage(features=FEATURES, clustering=Clustering())
    scores = CentralityStage(clusters=labels, reference=reference, neighbors=Neighbors())
    relevance = DrawnRelevance(pool=POOL, reference=reference)
    needed = {"reference": reference, "relevance": relevance, "centrality": scores}
    return SelectionStage(strategy=PreSel(), pool=POOL, budget=0.15, seed=0, needed=needed)


def files_of(store: Store) -> dict[str, bytes]:
    """The results of clustering and scoring, by the names of their files."""
    stage = selection()
    store.ensure(stage)
    scores = stage.needed["centrality"]
    assert isinstance(scores, CentralityStage)
    folders = [store.folder(one) for one in (scores.clusters, scores, stage)]
    found = [
        path for folder in folders for pattern in ("*.parquet", "*/*.npy") for path in folder.glob(pattern)
    ]
    return {path.relative_to(store.root).as_posix(): path.read_bytes() for path in found}


def test_a_file_that_is_read_group_by_group_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    with threadpool_limits(1):
        in_place = files_of(Store(tmp_path / "one"))
        request.getfixturevalue("on_disk")
        monkeypatch.setattr(centrality, "_TOGETHER", 250)
        assert files_of(Store(tmp_path / "other")) == in_place
    assert sum(name.endswith(".npy") for name in in_place) == 3


@given(data=st.data())
def test_groups_have_their_rows_in_their_order(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    order = data.draw(st.permutations(range(50)))
    ends = sorted(data.draw(st.sets(st.integers(1, 50), min_size=1)))
    groups = [np.array(order[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    vectors = mixture(50, 5, 4).astype(np.float16)
    features = Features(pd.Series(map(str, range(50))), vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_groups, "_BLOCK", data.draw(st.integers(1, 60)))
        in_place = FeatureGroups(features, groups, Path("unused"))
        patch.setattr(feature_groups, "IN_PLACE_BYTES", 0)
        copied = FeatureGroups(features, groups, tmp_path_factory.mktemp("groups") / "copy.npy")
        for number, group in enumerate(groups):
            (read,), (expected,) = ([rows.block(0, len(rows))] for rows in (copied[number], in_place[number]))
            assert (read == expected).all()
            assert np.allclose(read, vectors[group], atol=1e-3)


def test_the_cells_of_a_task_make_all_its_clusters_and_hold_each_image_once(
    store: Store, small_cells: Clustering
) -> None:
    table = clustered(store, small_cells)
    assert sorted(table["id"]) == sorted(store.load(POOL)["id"])
    sizes = table["task"].value_counts()
    assert sizes.max() > 500
    for task, part in table.groupby("task"):
        assert sorted(part["cluster"].unique()) == list(range(number_of_clusters(sizes[task])))
    folder = store.folder(ClustersStage(features=FEATURES, clustering=small_cells))
    centers = [len(np.load(path)) for path in sorted((folder / "centroids").iterdir())]
    assert centers == [number_of_clusters(sizes[task]) for task in sorted(sizes.index)]
    assert not (folder / "parts").exists()


def test_cells_depend_on_vectors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_cells: Clustering
) -> None:
    """Not on threads, on the parts of the file that are read at a time, or on the order of the pool."""
    one = clustered(Store(tmp_path / "one"), small_cells)
    monkeypatch.setattr(threads, "cpu_count", lambda: 3)
    monkeypatch.setattr(cells, "_SLICE", 331)
    monkeypatch.setattr(feature_groups, "IN_PLACE_BYTES", 0)
    pd.testing.assert_frame_equal(clustered(Store(tmp_path / "other"), small_cells), one)
    backwards = clustered(Store(tmp_path / "backwards"), small_cells, BACKWARDS)
    pd.testing.assert_frame_equal(backwards, one)


@pytest.fixture(scope="module")
def ties() -> FloatMatrix:
    """Vectors each of which has the key of another one, (m, d), m > 10: those among 400,000 random ones."""
    vectors = np.random.default_rng(0).standard_normal((400_000, 4)).astype(np.float16)
    keys = pd.Series(FeatureRows(vectors, normalize=True).content_keys())
    found = vectors[keys.duplicated(keep=False)]
    assert len(np.unique(found, axis=0)) == len(found) > 10
    return found


def test_the_order_of_equal_keys_is_that_of_contents(ties: FloatMatrix) -> None:
    orders = [
        np.arange(len(ties)),
        np.arange(len(ties))[::-1],
        np.random.default_rng(1).permutation(len(ties)),
    ]
    first, *others = (
        ties[order][FeatureRows(ties[order], normalize=True).content_order()] for order in orders
    )
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_cells_of_vectors_with_equal_keys_do_not_depend_on_their_order(
    ties: FloatMatrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of two such vectors is in the sample that decides the cells must not either."""
    monkeypatch.setattr(cells, "CLUSTERS_PER_CELL", 2)
    monkeypatch.setattr(cells, "_SAMPLE", len(ties) // 2)

    def divided(vectors: FloatMatrix) -> list[list[list[float]]]:
        features = Features(pd.Series(range(len(vectors))), vectors)
        parts = cells.divide(features, np.arange(len(vectors)), 8, seed=0)
        return [sorted(vectors[rows].tolist()) for rows, _ in parts]

    assert divided(ties) == divided(ties[::-1].copy())


def test_inertia_of_cells_is_near_that_of_the_whole_task(store: Store, small_cells: Clustering) -> None:
    vectors = np.load(store.ensure(FEATURES) / "features.npy").astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = pd.Series(range(len(vectors)), index=store.load(POOL)["id"])

    def inertia(clustering: Clustering) -> float:
        parts = clustered(store, clustering).groupby(["task", "cluster"])["id"]
        groups = [vectors[rows[ids]] for _, ids in parts]
        return float(sum(np.square(group - group.mean(axis=0)).sum() for group in groups))

    assert inertia(small_cells) < 1.05 * inertia(Clustering())


def test_a_run_that_was_stopped_goes_on_behind_the_last_part(
    store: Store, monkeypatch: pytest.MonkeyPatch, on_disk: None, small_cells: Clustering
) -> None:
    stage = ClustersStage(features=FEATURES, clustering=small_cells)
    at_once = clustered(Store(store.root.parent / "at_once"), small_cells)
    compute = clusters.cluster
    computed: list[IntVector] = []
    interrupted = threading.Event()

    def recorded(*given: Any, **options: Any) -> Any:
        if len(computed) == 3 and not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt
        found = compute(*given, **options)
        computed.append(found[0])
        return found

    monkeypatch.setattr(threads, "cpu_count", lambda: 1)
    monkeypatch.setattr(clusters, "cluster", recorded)
    with pytest.raises(KeyboardInterrupt):
        store.ensure(stage)
    pd.testing.assert_frame_equal(store.load(stage), at_once)
    # Every image passed through k-means once in both runs together.
    assert sum(map(len, computed)) == len(at_once)


@given(data=st.data())
def test_shards_of_features_are_joined_by_image_and_record(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Copies of an image share a row of the shards, and a record of several images gets their mean."""
    folder = tmp_path_factory.mktemp("joined")
    vectors = mixture(12, 3, 2)
    cuts = sorted(data.draw(st.sets(st.integers(1, 11))))
    files = [folder / f"part-{number}.npy" for number in range(len(cuts) + 1)]
    for file, part in zip(files, np.split(vectors, cuts), strict=True):
        write_array(file, part, with_digest=True)
    rows_of = data.draw(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=3), min_size=1))
    owners = np.repeat(np.arange(len(rows_of)), [len(rows) for rows in rows_of])
    ids = pd.Series([str(number) for number in range(len(rows_of))])
    FEATURES.write(folder, ids, files, np.concatenate(rows_of), owners)
    expected = [vectors[rows].mean(axis=0) for rows in rows_of]
    assert np.allclose(np.load(folder / "features.npy"), expected, atol=1e-6)


def test_only_a_group_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: None) -> None:
    np.save(tmp_path / "features.npy", mixture(40_000, 256, 4).astype(np.float16))
    ids = pd.Series(np.arange(40_000).astype(str))
    order = np.random.default_rng(0).permutation(40_000)
    groups = np.split(order, 20)
    tracemalloc.start()
    read = FeatureGroups(Features(ids, map_array(tmp_path / "features.npy")), groups, tmp_path / "copy.npy")
    for number in range(len(groups)):
        assert len(read[number]) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000 * 256 * 2 / 3


@pytest.mark.parametrize("in_place_bytes", [0, 10**9])
def test_a_bad_vector_outside_every_group_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place_bytes: int
) -> None:
    monkeypatch.setattr(feature_groups, "IN_PLACE_BYTES", in_place_bytes)
    vectors = mixture(50, 5, 4).astype(np.float16)
    vectors[49] = 0
    features = Features(pd.Series(map(str, range(50))), vectors)
    with pytest.raises(ValueError, match="the feature vector of row '49' is all zeros"):
        FeatureGroups(features, [np.arange(20), np.arange(20, 40)], tmp_path / "copy.npy")


def test_a_disk_without_room_for_the_copy_is_named_before_work(
    store: Store, monkeypatch: pytest.MonkeyPatch, on_disk: None, small_cells: Clustering
) -> None:
    stage = ClustersStage(features=FEATURES, clustering=small_cells)
    store.ensure(FEATURES)
    free = shutil.disk_usage(store.root)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(feature_groups, "IN_PLACE_BYTES", 0)
    needed = r"cannot write to .*0\.000144 GB are needed, 1e-05 GB are free.*; make room or set paths\.store"
    with pytest.raises(PreselError, match=needed):
        store.ensure(stage)
    assert not list(store.folder(stage).iterdir())


def test_a_new_file_has_its_space_before_it_is_written(tmp_path: Path) -> None:
    """On a disk that fills up later, a write through the map would kill the process."""
    array = map_new_array(tmp_path / "new.npy", np.dtype(np.float16), (3000, 64))
    assert (tmp_path / "new.npy").stat().st_blocks * 512 >= array.nbytes
    array[:] = 1
    array.flush()
    assert (np.load(tmp_path / "new.npy") == 1).all()


def test_arrays_of_any_name_are_read_as_they_were_written(tmp_path: Path) -> None:
    """One NumPy saves an argument `allow_pickle` as an array, another takes an array for it."""
    arrays = {"allow_pickle": np.arange(3), "file": np.zeros((2, 0))}
    write_arrays(tmp_path / "arrays.npz", **arrays)
    found = read_arrays(tmp_path / "arrays.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(ValueError, match="Object arrays"):
        write_arrays(tmp_path / "objects.npz", objects=np.array([{}]))


def test_the_default_leaves_keys_as_they_were() -> None:
    assert "divide_above" not in identity(Clustering())
    assert identity(Clustering(divide_above=5)) != identity(Clustering())
    assert identity(Clustering(divide_above=clusters.DIVIDE_ABOVE)) == identity(Clustering())


def test_clusters_of_divided_tasks_hold_the_version_of_the_division(
    store: Store, monkeypatch: pytest.MonkeyPatch, small_cells: Clustering
) -> None:
    """Where a key cannot hold it, for it knows no sizes of tasks, results of another version are refused."""
    whole, divided = (ClustersStage(features=FEATURES, clustering=how) for how in (Clustering(), small_cells))
    for stage in (whole, divided):
        store.ensure(stage)
        stage.check(store)
    before, default = identity(small_cells), identity(Clustering())
    monkeypatch.setattr(clusters, "DIVISION_VERSION", clusters.DIVISION_VERSION + 1)
    assert identity(small_cells) != before
    assert identity(Clustering()) == default
    whole.check(store)
    with pytest.raises(PreselError, match=r"tasks above cluster\.divide_above=500 were clustered by another"):
        divided.check(store)


@pytest.mark.parametrize("backend", ["numpy", "faiss", "released"])
def test_divide_above_is_refused_where_it_has_no_effect(backend: ClusterBackend) -> None:
    assert "divide_above" not in identity(Clustering(backend=backend))
    with pytest.raises(ValueError, match=f"divide_above=5 has no effect with backend={backend}"):
        Clustering(backend=backend, divide_above=5)


@pytest.mark.parametrize(
    ("backend", "on_actors"), [("auto", False), ("faiss", False), ("numpy", True), ("released", False)]
)
def test_what_gpus_or_scikit_learn_cluster_is_not_sent_to_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: ClusterBackend, on_actors: bool
) -> None:
    class Seen(Exception):
        """Ends the stage before it clusters."""

    class Executor(LocalExecutor):
        def run(self, work: Sharded, store: Store, folder: Path, shards: Shards[Any, Any]) -> None:
            raise Seen(shards.device_independent)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    features = DrawnFeatures(pool=DrawnPool(n_images=400, n_tasks=4), dimension=24)
    with pytest.raises(Seen, match=str(on_actors)):
        clustered(Store(tmp_path, executor=Executor()), Clustering(backend=backend), features)


def test_quality_in_one_folder_is_that_of_the_cells_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(n_cells: int) -> dict[str, Any]:
        command = f"quality --folder {tmp_path} --images 3000 --dimension 16 --ways cells --cells {n_cells}"
        monkeypatch.setattr("sys.argv", command.split())
        quality.main()
        (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
        return dict(found)

    few, many = row(2), row(10)
    assert many["inertia"] > few["inertia"]
    assert row(2) == few
