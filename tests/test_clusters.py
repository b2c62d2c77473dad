"""The stage `clusters`: which orders of the pool have a say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans

from presel.data.sources import LlavaJson
from presel.distributed.runtime import Runtime
from presel.models.encoder import Encoder
from presel.models.hardware import Hardware
from presel.selection import ClusterBackend
from presel.stages.clusters import Clustering, ClustersStage
from presel.stages.features import FeaturesStage
from presel.stages.pool import PoolStage
from presel.storage.store import Store


def stage(annotations: Path, backend: ClusterBackend) -> ClustersStage:
    pool = PoolStage(
        source=LlavaJson(annotations=annotations, images=annotations.parent / "images"), workers=0
    )
    features = FeaturesStage(
        pool=pool,
        encoder=Encoder(path="builtin:digit_dinov2"),
        runtime=Runtime(hardware=Hardware(accelerator="cpu")),
    )
    return ClustersStage(features=features, clustering=Clustering(images_per_cluster=5, backend=backend))


@pytest.fixture
def shuffled(pool_folder: Path) -> Path:
    """The records of the pool in another order."""
    records = json.loads((pool_folder / "pool.json").read_text())
    order = np.random.default_rng(1).permutation(len(records))
    file = pool_folder / "shuffled.json"
    file.write_text(json.dumps([records[row] for row in order]))
    return file


def test_released_labels_are_those_of_scikit_learn_in_the_order_of_the_file(
    shuffled: Path, store: Store
) -> None:
    released = stage(shuffled, "released")
    table = store.load(released).set_index("id")["cluster"]
    ids, array = store.load(released.features)
    vectors = array.astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    records = pd.DataFrame(json.loads(shuffled.read_text()))
    assert ids.tolist() == records["id"].tolist()
    for task, n_clusters in (("vqa", 8), ("ocr", 4)):
        members = (records["task"] == task).to_numpy()
        expected = KMeans(n_clusters=n_clusters, random_state=12345).fit(vectors[members]).labels_
        assert table[records["id"][members]].tolist() == expected.tolist()


def test_other_labels_have_nothing_to_do_with_the_order_of_the_file(
    pool_folder: Path, shuffled: Path, store: Store
) -> None:
    tables = [store.load(stage(file, "auto")) for file in (pool_folder / "pool.json", shuffled)]
    pd.testing.assert_frame_equal(*tables)
