"""`presel export` of the whole pool: what programs that show it find, by their documented formats."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from presel.runs import RunRecord
from presel.selection import neighbors as module
from presel.selection.neighbors import nearest_neighbors
from tests.helpers import TINY, InSubprocess, Program, change, last_run, on_folder, two


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared_store: Path) -> RunRecord:
    """A run of PreSel that bought its instructions."""
    folder = tmp_path_factory.mktemp("run")
    InSubprocess(folder, shared_store).succeeds("run", "seed=3", "until=instructions", *TINY)
    return last_run(folder)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_neighbors_are_those_of_largest_cosine_similarity(n: int, k: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)
    neighbors, distances = nearest_neighbors(vectors, k)
    assert neighbors.shape == distances.shape == (n, min(k, n - 1))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    away = 1 - unit @ unit.T  # (n, n)
    np.fill_diagonal(away, np.inf)
    np.testing.assert_allclose(distances, np.sort(away, axis=1)[:, : min(k, n - 1)], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(away, neighbors, axis=1), distances, atol=1e-5)


def test_neighbors_among_many_vectors_are_near_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_ALL_PAIRS": 500, "_CELL": 20, "_NEAR": 6, "_ROWS": 7}.items():
        monkeypatch.setattr(module, name, value)
    generator = np.random.default_rng(0)
    vectors = np.repeat(generator.standard_normal((200, 8)), 10, axis=0) + 0.1 * generator.random((2000, 8))
    vectors[:100] = 1  # as of images of a single color
    done: list[int] = []
    neighbors, distances = nearest_neighbors(vectors, 5, done.append)
    assert sum(done) == 2000
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    away = 1 - unit @ unit.T  # (n, n)
    np.fill_diagonal(away, np.inf)
    np.testing.assert_allclose(np.take_along_axis(away, neighbors, axis=1), distances, atol=1e-5)
    assert all(len(set(row)) == 5 for row in neighbors.tolist())
    nearest = np.sort(away, axis=1)[:, :5]
    assert np.isclose(distances, nearest, atol=1e-5).mean() > 0.9


def test_columns_of_a_strategy_keep_clear_of_those_of_exports(in_process: Program, tmp_path: Path) -> None:
    names = ("x", "x_", "image", "chosen", "reason", "thumbnail", "neighbors", "tags", "metadata")
    (tmp_path / "named.py").write_text(
        "import pandas as pd\n"
        "from presel.component import component\n"
        "from presel.strategies.base import SelectionContext, Strategy\n\n"
        "@component\n"
        "class Named(Strategy):\n"
        "    def select(self, context: SelectionContext) -> pd.DataFrame:\n"
        "        ids = context.pool['id'][: context.budget]\n"
        f"        return pd.DataFrame({{'id': ids, 'why': 7}} | dict.fromkeys({names}, 'own'))\n"
    )
    (tmp_path / "conf" / "strategy").mkdir(parents=True)
    (tmp_path / "conf" / "strategy" / "named.yaml").write_text("_target_: named.Named\n")
    in_process.succeeds("run", *TINY, "strategy=named", "until=selection", "--config-dir", "conf")
    run = last_run(tmp_path)
    in_process.succeeds("export", str(run.folder), "--format", "parquet", "--out", "shown")
    table = pd.read_parquet(tmp_path / "shown" / "pool.parquet")
    own = ["x__", "x_", *(f"{name}_" for name in names[2:])]
    assert (table.loc[table["chosen"], own] == "own").all(axis=None)
    assert set(table.loc[table["chosen"], "reason"]) == {"7.0"}
    assert table["x"].between(0, 1).all()
    in_process.succeeds("export", str(run.folder), "--format", "fiftyone", "--out", "fifty")
    sample = json.loads((tmp_path / "fifty" / "samples.json").read_text())["samples"][0]
    assert sample["tags"] == ["chosen"]
    assert {sample[name] for name in own} == {"own"}


def test_parquet_has_what_atlas_and_spotlight_read(run: RunRecord, in_process: Program) -> None:
    in_process.succeeds("export", str(run.folder), "--format", "parquet", "--out", "out")
    file = in_process.folder / "out" / "pool.parquet"
    table = pd.read_parquet(file)
    assert list(table["id"]) == list(run.pool["id"])
    assert {"task", "cluster", "centrality", "rank", "chosen", "reference", "reason"} <= set(table)
    assert list(table.loc[table["chosen"], "id"]) == list(run.chosen["id"])
    assert set(table.loc[table["reference"], "id"]) == run.reference_ids
    assert set(table.loc[table["chosen"], "reason"]) == {"reference", "central"}
    assert set(table.loc[~table["chosen"], "reason"]) == {""}
    assert table[["x", "y"]].apply(lambda column: column.between(0, 1)).all(axis=None)
    assert all(Path(image).is_file() for image in table["image"])
    # As Hugging Face's images are.
    assert [field.name for field in pq.read_schema(file).field("thumbnail").type] == ["bytes", "path"]
    with Image.open(io.BytesIO(table["thumbnail"].iloc[0]["bytes"])) as picture:
        assert picture.format == "JPEG"
        assert max(picture.size) <= 128
    for row, found in enumerate(table["neighbors"]):
        ids, distances = found["ids"], found["distances"]
        assert row not in ids
        assert set(table["task"].iloc[ids]) == {table["task"].iloc[row]}
        assert len(ids) == min(5, (table["task"] == table["task"].iloc[row]).sum() - 1)
        assert list(distances) == sorted(distances)


def test_fiftyone_has_fields_tags_and_instructions(run: RunRecord, in_process: Program) -> None:
    in_process.succeeds("export", str(run.folder), "--format", "fiftyone", "--out", "out", "--images", "link")
    out = in_process.folder / "out"
    head = json.loads((out / "metadata.json").read_text())
    samples = json.loads((out / "samples.json").read_text())["samples"]
    fields = head["sample_fields"]
    assert "version" not in head, "FiftyOne reads the type of each field only where there is none"
    assert fields["centrality"] == "fiftyone.core.fields.FloatField"
    assert fields["task"] == "fiftyone.core.fields.StringField"
    assert [sample["pool_id"] for sample in samples] == list(run.pool["id"])
    assert all((out / sample["filepath"]).is_file() for sample in samples)
    chosen = {sample["pool_id"] for sample in samples if "chosen" in sample["tags"]}
    assert chosen == set(run.chosen["id"])
    assert {sample["pool_id"] for sample in samples if "reference" in sample["tags"]} == run.reference_ids
    records = {record.id: record for record in run.records()}
    for sample in samples:
        assert sample.keys() <= fields.keys()
        if sample["pool_id"] in records:
            question, answer, *_ = (turn["value"] for turn in records[sample["pool_id"]].conversations)
            assert sample["question"] in question
            assert "<image>" not in sample["question"]
            assert sample["answer"] == answer
        else:
            assert "answer" not in sample


def test_a_run_without_features_and_a_record_with_several_images(
    in_process: Program, pool_folder: Path
) -> None:
    change(pool_folder, two(3, 4))
    in_process.succeeds("run", *on_folder(pool_folder), "strategy=random", "until=selection")
    run = last_run(pool_folder)
    assert "features" not in run.stages
    result = in_process.succeeds("export", str(run.folder), "--format", "fiftyone", "--out", "shown")
    samples = json.loads((pool_folder / "shown" / "samples.json").read_text())["samples"]
    (sample,) = [one for one in samples if one["pool_id"] == "0003"]
    assert [Path(image).name for image in sample["images"]] == ["0003.png", "0004.png"]
    assert sample["filepath"] == sample["images"][0]
    assert "features" in result.stdout
    told = in_process.refuses(
        *("export", str(run.folder), "--format", "parquet", "--out", "x", "--images", "copy")
    )
    assert "--format parquet holds the images itself" in told
