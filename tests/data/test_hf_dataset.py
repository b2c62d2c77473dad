"""Datasets that `save_to_disk` wrote: how rows are read, and that files come out as they went in."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from PIL import Image

from presel.data.hf_dataset import HfDataset
from presel.errors import PreselError
from presel.storage.store import Store
from tests.pictures import picture

LABELS = ["cat", "dog"]


def dataset(folder: Path, count: int = 4) -> Any:
    """Pictures as JPEG files with a label, a text and a number."""
    files = [str(picture(folder / f"{number}.jpg", number)) for number in range(count)]
    columns = {
        "image": files,
        "label": [number % 2 for number in range(count)],
        "text": ["SECRET"] * count,
        "number": list(range(7, 7 + count)),
        "name": [f"kind {number % 2}" for number in range(count)],
    }
    rows = datasets.Dataset.from_dict(columns)
    return rows.cast_column("image", datasets.Image()).cast_column("label", datasets.ClassLabel(names=LABELS))


def test_files_come_out_as_they_went_in_and_texts_stay(tmp_path: Path, store: Store) -> None:
    dataset(tmp_path).save_to_disk(tmp_path / "saved")
    originals = [(tmp_path / f"{number}.jpg").read_bytes() for number in range(4)]
    files = HfDataset(path=tmp_path / "saved", task_column="label").files(store)
    items = files.listing().items
    assert [(item.id, item.task) for item in items] == [
        ("0", "cat"),
        ("1", "dog"),
        ("2", "cat"),
        ("3", "dog"),
    ]
    assert [item.image for item in items] == [f"00000/00000{number}.jpg" for number in range(4)]
    assert [(files.images / item.image).read_bytes() for item in items] == originals
    assert not any(b"SECRET" in file.read_bytes() for file in store.root.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("columns", "first"),
    [
        ({"task_column": "name"}, ("0", "kind 0")),
        ({"task_column": "number", "id_column": "number"}, ("7", "7")),
        ({"task_column": None, "task": "all"}, ("0", "all")),
        ({"task_column": None}, ("0", None)),
    ],
)
def test_task_and_id_columns(
    tmp_path: Path, store: Store, columns: dict[str, Any], first: tuple[str, str]
) -> None:
    dataset(tmp_path).save_to_disk(tmp_path / "saved")
    item = HfDataset(path=tmp_path / "saved", **columns).files(store).listing().items[0]
    assert (item.id, item.task) == first


def test_a_split_and_a_selection_of_rows(tmp_path: Path, store: Store) -> None:
    rows = dataset(tmp_path)
    splits = {"train": rows, "test": rows.select([3, 1]).with_format("numpy")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    files = HfDataset(path=tmp_path / "saved", split="test", task_column="label").files(store)
    found = [(files.images / item.image).read_bytes() for item in files.listing().items]
    assert found == [(tmp_path / "3.jpg").read_bytes(), (tmp_path / "1.jpg").read_bytes()]


def test_pictures_without_a_file_are_those_that_datasets_made(tmp_path: Path, store: Store) -> None:
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": pictures}, features=features).save_to_disk(tmp_path / "saved")
    files = HfDataset(path=tmp_path / "saved", task_column=None).files(store)
    paths = [files.images / item.image for item in files.listing().items]
    assert [path.suffix for path in paths] == [".png", ".png"]
    assert [Image.open(path).getpixel((0, 0)) for path in paths] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize(
    ("spoil", "settings", "said"),
    [
        (None, {}, "it has no column 'task' among image, label, text, number, name; "),
        (None, {"task_column": "label", "image_column": "text"}, "its column 'text' is not of type Image"),
        (None, {"task_column": "label", "split": "train"}, "it has no splits; leave pool.split out"),
        (
            lambda rows: datasets.DatasetDict({"a": rows, "b": rows}),
            {"task_column": "label"},
            "it has splits; set pool.split to one of a, b",
        ),
        (
            lambda rows: rows.map(lambda _, row: {"label": -1 if row == 2 else 0}, with_indices=True),
            {"task_column": "label"},
            "row 2: 'label' is missing; ",
        ),
        (
            lambda rows: datasets.Dataset.from_dict(
                {"image": [None]}, features=datasets.Features({"image": datasets.Image()})
            ),
            {"task_column": None},
            "row 0: 'image' contains no image file; ",
        ),
    ],
)
def test_datasets_that_cannot_be_used(
    tmp_path: Path, store: Store, spoil: Callable[[Any], Any] | None, settings: dict[str, Any], said: str
) -> None:
    rows = dataset(tmp_path)
    (spoil(rows) if spoil else rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(PreselError) as caught:
        HfDataset(path=tmp_path / "saved", **settings).files(store)
    assert str(caught.value).startswith(f"{tmp_path}/saved: {said}")


def test_folders_that_are_no_dataset(tmp_path: Path, store: Store) -> None:
    with pytest.raises(PreselError, match="gone: there is no such folder; "):
        HfDataset(path=tmp_path / "gone").files(store)
    with pytest.raises(PreselError, match="no dataset can be read from it"):
        HfDataset(path=tmp_path).files(store)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{}", '{"_data_files": 1}', "", "{"])
def test_state_that_is_no_datasets(tmp_path: Path, store: Store, content: str) -> None:
    dataset(tmp_path).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text(content)
    with pytest.raises(PreselError, match="saved: no dataset can be read from it"):
        HfDataset(path=tmp_path / "saved", task_column="label").files(store)


def test_a_pipe_is_not_waited_for(tmp_path: Path, store: Store) -> None:
    dataset(tmp_path).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").unlink()
    os.mkfifo(tmp_path / "saved" / "state.json")
    with pytest.raises(PreselError, match=r"state\.json: this is a pipe, socket or device; "):
        HfDataset(path=tmp_path / "saved", task_column="label").files(store)


def test_without_the_library_the_remedy_is_named(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PreselError, match=r"needs the package datasets; .*'\.\[sources\]'"):
        HfDataset(path=tmp_path).files(store)


def test_an_image_more_is_another_pool(tmp_path: Path) -> None:
    dataset(tmp_path).save_to_disk(tmp_path / "saved")
    source = HfDataset(path=tmp_path / "saved", task_column="label")
    # A cache of `datasets.map`.
    (tmp_path / "saved" / "cache-0f3.arrow").write_bytes(b"rows")
    assert HfDataset(path=tmp_path / "saved", task_column="label", min_side=2).identity() == source.identity()
    dataset(tmp_path, 5).save_to_disk(tmp_path / "saved")
    assert HfDataset(path=tmp_path / "saved", task_column="label").identity() != source.identity()


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (pyarrow.array([1 << 62], pyarrow.timestamp("ms")), "row 0: it contains an invalid date; "),
        (pyarrow.array([b"caf\xe9"]).view(pyarrow.string()), r"it is damaged .*UTF8 sequence"),
    ],
)
def test_values_that_cannot_be_read_are_reported(
    tmp_path: Path, store: Store, column: pyarrow.Array, told: str
) -> None:
    rows = dataset(tmp_path, 1)
    table = rows.data.table.append_column("task", column)
    datasets.Dataset(table).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    with pytest.raises(PreselError, match=rf"saved: {told}"):
        HfDataset(path=tmp_path / "saved").files(store)
