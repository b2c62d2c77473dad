"""Pools that are a table: the three formats read alike, and what each bad row says."""

import gzip
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet
import pytest

from presel.data.listing import Item
from presel.data.manifest import Columns, Manifest, ManifestFiles
from presel.errors import PreselError
from tests.pictures import picture

COLUMNS = Columns("image", "task", None)
TABLE = pd.DataFrame(
    {
        "image": ["a/1.png", 'an, odd "name".png', "日本語.png"],
        "task": ["vqa", "ocr", "vqa"],
        "name": ["x", "y", "z"],
        "note": ["two\nlines", "SECRET", ""],
    }
)


def written(folder: Path, name: str, table: Any) -> Path:
    """Writes a table in the format that the name tells, text and bytes as they are."""
    path = folder / name
    if isinstance(table, bytes):
        path.write_bytes(table)
    elif isinstance(table, str):
        path.write_text(table)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",", encoding="utf-8-sig")
    return path


def read_manifest(path: Path, columns: Columns, task: str | None = None) -> list[Item]:
    return ManifestFiles(path.parent, path, columns, task).listing().items


def failure(path: Path, columns: Columns = COLUMNS) -> str:
    """Reads a bad table; returns what the error says after the file's name."""
    with pytest.raises(PreselError) as caught:
        read_manifest(path, columns)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["pool.csv", "pool.tsv", "pool.parquet", "POOL.CSV"])
def test_the_three_formats_read_alike(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, TABLE)
    images = TABLE["image"].tolist()
    assert read_manifest(path, COLUMNS) == [
        Item(image, image, task) for image, task in zip(images, TABLE["task"], strict=True)
    ]
    named = read_manifest(path, Columns("image", None, "name"), "all")
    assert named == [Item(name, image, "all") for name, image in zip("xyz", images, strict=True)]


def test_parquet_may_hold_categories_and_whole_numbers(tmp_path: Path) -> None:
    table = TABLE.assign(task=pd.Categorical(TABLE["task"]), name=[7, 8, 9])
    items = read_manifest(written(tmp_path, "pool.parquet", table), Columns("image", "task", "name"))
    assert [(item.id, item.task) for item in items] == [("7", "vqa"), ("8", "ocr"), ("9", "vqa")]


@pytest.mark.parametrize("name", ["pool.csv", "pool.parquet"])
@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("image", "a/1.png", "row 2: 'image' is already that of row 1 ('a/1.png'); "),
        ("image", " ", "row 2: 'image' is blank; "),
        ("image", "/etc/passwd", "row 2: 'image' is '/etc/passwd', an absolute path; "),
        ("image", "C:/a.png", "row 2: 'image' is 'C:/a.png', an absolute path; "),
        ("image", "a/../../b.png", "row 2: 'image' is 'a/../../b.png', which may leave the image folder"),
        (
            "image",
            "a\\b.png",
            r"row 2: 'image' is 'a\\b.png', with a backslash, which image paths may not have; ",
        ),
        ("image", "https://example.org/a.png", "row 2: 'image' is 'https://example.org/a.png', an address; "),
        ("image", "b.png\n", r"row 2: 'image' is 'b.png\n', with a line break"),
        ("task", "v\tqa", r"row 2: 'task' is 'v\tqa', with a line break, tab or other control character"),
        ("task", " ", "row 2: 'task' is blank; name the image's task"),
        ("name", "x", "row 2: 'name' is already that of row 1 ('x'); "),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, name: str, column: str, value: str, said: str) -> None:
    table = TABLE.copy()
    table.loc[1, column] = value
    path = written(tmp_path, name, table)
    assert failure(path, COLUMNS._replace(id="name" if column == "name" else None)).startswith(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": [None, "a", "b"]}, "row 1: 'task' is missing; "),
        ({"task": [1.5, 2.5, 3.5]}, "row 1: 'task' is a number, not text; "),
        ({"image": [["a.png"], [], []]}, "row 1: 'image' is a list, not text; "),
        ({"image": [{"path": "a.png"}] * 3}, "row 1: 'image' is an object, not text; "),
        ({"image": [b"a.png"] * 3}, "row 1: 'image' is bytes, not text; "),
        ({"task": pd.Timestamp("2026-01-01")}, "row 1: 'task' is a date or time, not text; "),
    ],
)
def test_parquet_cells_of_other_types(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    assert failure(written(tmp_path, "pool.parquet", TABLE.assign(**change))).startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it has no column 'image' among none; name the column by pool.image_column"),
        ("image\na.png\n", "it has no column 'task' among 'image'; .*pool.task_column=null"),
        ("image,task,image\na,b,c\n", "it has more than one column 'image'"),
        ("image,task\n", "the table has no row; "),
        ("image,task\na.png,x\nb.png,x,y\n", "row 2: it has 3 cells where the header has 2; "),
        ("image,task\na.png\n", "row 1: it has 1 cells where the header has 2; "),
        ('image,task\na.png,x\n"b.png,x\n', r"row 2 is malformed \(unexpected end of data\); "),
        ("image,task\nprüfen.png,x\n".encode("latin-1"), "the file is not UTF-8; "),
        ("image,task\na.png,x\n".encode("utf-16-le"), "the file is not UTF-8 but UTF-16, or not text"),
        ("image,task\na.png,x\0\n", r"row 1: 'task' is 'x\\x00', with a line break"),
        ("image;task;id\na.png;x;1\n", "its first line is 'image;task;id'; .*separated by commas"),
        ('"image";"task"\n"a.png";"x"\n', 'its first line is \'"image";"task"\'; '),
        ("image\ttask\na.png\tx\n", r"its first line is 'image\\ttask'; .*\.csv commas, \.tsv tabs"),
        ("sep=;\nimage;task\na.png;x\n", "its first line is 'sep=;'; "),
        ("sep=,\nimage,task\na.png,x\n", "its first line is 'sep=,'; "),
        (gzip.compress(b"image,task\n"), "the file is packed by gzip; "),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, content: Any, said: str) -> None:
    message = failure(written(tmp_path, "pool.csv", content))
    assert re.match(said, message), message


def test_names_of_columns_may_hold_other_delimiters(tmp_path: Path) -> None:
    path = written(tmp_path, "pool.tsv", "image\ttask\tnote: red, green, blue, white\na.png\tx\tnone\n")
    assert [item.image for item in read_manifest(path, COLUMNS, "x")] == ["a.png"]


def test_files_that_are_no_table(tmp_path: Path) -> None:
    assert failure(tmp_path / "gone.csv").startswith("there is no such file; ")
    assert failure(written(tmp_path, "pool.parquet", "no")).startswith("no parquet can be read from it (")
    assert failure(written(tmp_path, "pool.xlsx", "no")).startswith("the format is unknown; ")


def test_a_cell_that_is_not_read_may_be_long(tmp_path: Path) -> None:
    path = written(tmp_path, "pool.csv", f"image,task,thumbnail\na.png,x,{'A' * 140_000}\n")
    assert read_manifest(path, COLUMNS) == [Item("a.png", "a.png", "x")]


def test_damaged_parquet_is_reported(tmp_path: Path) -> None:
    latin = pyarrow.array([b"pr\xfcfen.png"]).view(pyarrow.string())
    path = tmp_path / "pool.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": latin, "task": ["x"]}), path)
    assert failure(path).startswith("a text in it is not UTF-8; ")
    never = pyarrow.array([1 << 62], pyarrow.timestamp("ms"))
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"], "task": never}), path)
    assert failure(path).startswith("no parquet can be read from it ('Python int too large")
    whole = written(tmp_path, "pool.parquet", TABLE).read_bytes()
    for damaged in (whole[:-100], whole[:4] + bytes(len(whole) - 12) + whole[-8:]):
        assert failure(written(tmp_path, "pool.parquet", damaged)).startswith(
            "no parquet can be read from it"
        )


@pytest.mark.parametrize("name", ["pool.csv", "pool.parquet"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert failure(tmp_path / name).startswith("this is a pipe, socket or device; ")


def test_blank_lines_do_not_count(tmp_path: Path) -> None:
    path = written(tmp_path, "pool.csv", "image,task\r\na.png,x\r\n\r\nb.png,x\r\n\r\n")
    assert [item.image for item in read_manifest(path, COLUMNS)] == ["a.png", "b.png"]


def test_what_decides_the_pool(tmp_path: Path) -> None:
    picture(tmp_path / "images/1.png")
    path = written(tmp_path, "pool.csv", "image,task\n1.png,a\n")

    def identity(**settings: Any) -> object:
        return Manifest(manifest=path, images=tmp_path / "images", **settings).identity()

    first = identity()
    assert identity(max_rejected_share=0.5) == first
    assert identity(id_column="task") != first
    picture(tmp_path / "images/1.png", 3)
    assert identity() != first
