"""Features that exist already, in a parquet or .npy file, and encoders from outside the package."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from presel.errors import PreselError
from presel.models.precomputed import Precomputed
from tests.composing import mistake
from tests.helpers import OWN_STORE, Program, change, last_run, on_folder, refused, stage_lines, two

IMAGES = [f"{number:04}.png" for number in range(60)]
VECTORS = np.random.default_rng(1).standard_normal((60, 8)).astype(np.float32)
SELECT = ("strategy=precover", "until=selection", "budget=12")

Vectors = NDArray[np.floating[Any]]


def saved(file: Path, vectors: Vectors = VECTORS, images: list[str] = IMAGES) -> list[str]:
    """Writes features in the format of the file's name, and gives the overrides that read them."""
    chosen = ["encoder=precomputed", f"encoder.file={file}"]
    if file.suffix == ".parquet":
        pd.DataFrame({"task": "any", "image": images, "feature": list(vectors)}).to_parquet(file)
        return chosen
    np.save(file, vectors)
    file.with_suffix(".json").write_text(json.dumps(images))
    return [*chosen, f"encoder.ids={file.with_suffix('.json')}"]


def features(folder: Path) -> Vectors:
    """Those of the last run."""
    found: Vectors = np.load(last_run(folder).stages["features"].folder / "features.npy")
    return found


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.parquet", "<f4"), ("a.parquet", "<f2"), ("a.npy", "<f8"), ("a.npy", ">f4"), ("a.npy", "<f2")],
)
def test_an_encoders_features_from_a_file_give_its_selection(
    in_process: Program, pool_folder: Path, name: str, dtype: str
) -> None:
    run = ("run", *on_folder(pool_folder), *SELECT)
    in_process.succeeds(*run, "encoder=digit_dinov2")
    expected, stored = last_run(pool_folder).selection, features(pool_folder)
    # In another order, and with images that are not in the pool, whose features may be anything.
    vectors = np.vstack([np.full((1, stored.shape[1]), np.nan), stored[::-1]]).astype(dtype)
    chosen = saved(pool_folder / name, vectors, ["unknown.png", *IMAGES[::-1]])
    result = in_process.succeeds(*run, *chosen)
    assert features(pool_folder).dtype == np.float16
    np.testing.assert_array_equal(features(pool_folder), stored)
    pd.testing.assert_frame_equal(last_run(pool_folder).selection, expected)
    assert "made for the built-in digit scenes" not in result.stdout


def test_several_images_have_the_mean_of_their_features(in_process: Program, pool_folder: Path) -> None:
    change(pool_folder, two(3, 7))
    names = pool_folder / "names.txt"
    names.write_text("\r\n".join(IMAGES) + "\r\n", newline="")
    chosen = [*saved(pool_folder / "a.npy"), f"encoder.ids={names}", "pool.limit=50"]
    in_process.succeeds("run", *on_folder(pool_folder), *SELECT, *chosen)
    found = pd.Series(list(features(pool_folder)), index=last_run(pool_folder).pool["id"])
    expected = VECTORS.astype(np.float16)
    expected[3] = expected[[3, 7]].astype(np.float32).mean(axis=0)
    assert len(found) == 50 and "0003" in found
    for name, vector in found.items():
        np.testing.assert_array_equal(vector, expected[int(str(name))])


def test_no_image_is_opened_for_features_from_a_file(in_process: Program, pool_folder: Path) -> None:
    run = ("run", *on_folder(pool_folder), OWN_STORE, "until=selection", "budget=12")
    in_process.succeeds(*run, "strategy=random")
    for file in (pool_folder / "images").iterdir():
        file.write_bytes(bytes(file.stat().st_size))
        os.utime(file, (0, 0))
    in_process.succeeds(*run, "strategy=precover", *saved(pool_folder / "a.parquet"))
    np.testing.assert_array_equal(features(pool_folder), VECTORS.astype(np.float16))


def test_the_content_of_the_files_decides(in_process: Program, pool_folder: Path) -> None:
    run = ("run", *on_folder(pool_folder), OWN_STORE, *SELECT)
    how = []
    for name, vectors, images in (
        ("a.npy", VECTORS, IMAGES),
        ("b.npy", VECTORS, IMAGES),
        ("b.npy", VECTORS + 1, IMAGES),
        ("b.npy", VECTORS, IMAGES[::-1]),
    ):
        result = in_process.succeeds(*run, *saved(pool_folder / name, vectors, images))
        how.append(stage_lines(result.stdout)["features"])
    assert how == ["computed", "reused", "computed", "computed"]


def with_row(row: int, value: float) -> Vectors:
    """The vectors, one of them constant."""
    changed = VECTORS.copy()
    changed[row] = value
    return changed


def lists(*columns: object, names: tuple[str, ...] = ("image", "feature")) -> Callable[[Path], object]:
    """Writes a parquet table."""
    return lambda file: pyarrow.parquet.write_table(pa.table(list(columns), names=list(names)), file)


ROWS = [list(map(float, row)) for row in VECTORS]
NOT_FINITE = "holds NaN, an infinite value or one above 65,504; compute it again, or leave its records out by"
FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": (
        "a.npy",
        lambda file: saved(file, VECTORS[:58], ["images/0000.png", *IMAGES[1:58]]),
        "3 of the pool's 60 images have no feature (first: '0000.png'; the file's first name is "
        "'images/0000.png'); name images as the pool does, by their paths relative to pool.images",
    ),
    "twice": (
        "a.parquet",
        lambda file: saved(file, VECTORS, [*IMAGES[:59], "0007.png"]),
        "'0007.png' is in rows 7 and 59 from 0; give each image one row",
    ),
    "too few rows": (
        "a.npy",
        lambda file: saved(file, VECTORS[:59]),
        "a.json: it has 60 names for the 59 rows of ",
    ),
    "one dimension": ("a.npy", lambda file: saved(file, VECTORS[:, 0]), "a.npy: it has shape (60,) and type"),
    "integers": ("a.npy", lambda file: saved(file, np.ones((60, 8), int)), "and type int64; store floating"),
    "NaN": (
        "a.npy",
        lambda file: saved(file, with_row(9, np.nan)),
        f"'0009.png', in row 9 from 0, {NOT_FINITE}",
    ),
    "infinite": ("a.parquet", lambda file: saved(file, with_row(9, np.inf)), f"row 9 from 0, {NOT_FINITE}"),
    "too large": ("a.npy", lambda file: saved(file, with_row(9, 1e5)), f"row 9 from 0, {NOT_FINITE}"),
    "zero": ("a.npy", lambda file: saved(file, with_row(59, 0)), "row 59 from 0, is zero in half precision"),
    "too small": (
        "a.npy",
        lambda file: saved(file, with_row(5, 1e-9)),
        "row 5 from 0, is zero in half precision",
    ),
    "objects": (
        "a.npy",
        lambda file: saved(file, np.array([[{}]] * 60, object)),
        'it cannot be read ("Array can\'t be memory-mapped: Python objects in dtype."); write it again',
    ),
    "empty": ("a.npy", lambda file: (saved(file), file.write_bytes(b"")), "a.npy: it cannot be read ("),
    "cut": (
        "a.npy",
        lambda file: (saved(file), os.truncate(file, 1000)),
        "a.npy: it cannot be read ('mmap length is greater than file size'); write it again",
    ),
    "a zip archive": (
        "a.npy",
        lambda file: (saved(file), file.write_bytes(b"PK\3\4")),
        "a.npy: the file is packed by zip",
    ),
    "no file": ("a.parquet", lambda file: None, "a.parquet: there is no such file; check the path"),
    "no names": (
        "a.npy",
        lambda file: (saved(file), file.with_suffix(".json").unlink()),
        "a.json: there is no such file; check the path",
    ),
    "names that are no list": (
        "a.npy",
        lambda file: (saved(file), file.with_suffix(".json").write_text("{}")),
        "a.json: it is no JSON list; write the names as one",
    ),
    "names that are no JSON": (
        "a.npy",
        lambda file: (saved(file), file.with_suffix(".json").write_text("0000.png")),
        "a.json: it cannot be read (",
    ),
    "a name that is no text": (
        "a.npy",
        lambda file: saved(file, VECTORS, [*IMAGES[:59], 59]),  # type: ignore[list-item]
        "a.json: row 59 from 0 is named 59; name an image by its path",
    ),
    "no parquet": ("a.parquet", lambda file: file.write_text("image"), "a.parquet: it cannot be read ("),
    "no column": (
        "a.parquet",
        lambda file: lists(IMAGES, ROWS, names=("path", "feature"))(file),
        "it has no single column 'image' among 'path', 'feature'; name two 'image' and 'feature'",
    ),
    "no lists": ("a.parquet", lists(IMAGES, range(60)), "column 'feature' is of type int64; write lists of"),
    "several lengths": (
        "a.parquet",
        lists(IMAGES, [*ROWS[:59], ROWS[59][:3]]),
        "row 59 from 0 holds 3 numbers and the first 8; write as many for each image",
    ),
    "no list": (
        "a.parquet",
        lists(IMAGES, [*ROWS[:59], None]),
        "row 59 from 0 holds 0 numbers and the first 8",
    ),
    "a missing number": ("a.parquet", lists(IMAGES, [*ROWS[:59], [*ROWS[59][:7], None]]), NOT_FINITE),
    "no name": ("a.parquet", lists([*IMAGES[:59], None], ROWS), "row 59 from 0 is named None; name an image"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name, write, told = FAULTS[fault]
    write(Path(name))
    encoder = Precomputed(file=Path(name), ids=Path("a.json") if name == "a.npy" else None)
    with pytest.raises(PreselError, match=r"^encoder\.(file: a\.(npy|parquet)|ids: a\.json): ") as caught:
        encoder.check_images(pd.Series(IMAGES))
    assert told in str(caught.value)


@pytest.mark.parametrize("fault", ["missing", "NaN", "no file"])
def test_a_run_is_refused_before_any_training(in_process: Program, pool_folder: Path, fault: str) -> None:
    name, write, told = FAULTS[fault]
    write(pool_folder / name)
    chosen = ["encoder=precomputed", f"encoder.file={name}"]
    if name == "a.npy":
        chosen.append("encoder.ids=a.json")
    result = in_process("run", *on_folder(pool_folder), "until=selection", "budget=12", *chosen)
    refused(result, f"presel: error: encoder.file: {name}: ", told)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["file=a.csv"], "encoder: file=a.csv has an unknown format; let its name end in .npy or .parquet"),
        (["file=a.npy"], "encoder: file=a.npy names no images; name those of its rows by encoder.ids=FILE"),
        (["file=a.parquet", "ids=a.json"], "encoder: ids=a.json is not read, since a.parquet has the names"),
        ([], "encoder.file has no value; set it, as in encoder.file=…"),
    ],
)
def test_files_that_do_not_go_together_are_refused(settings: list[str], told: str) -> None:
    assert mistake("encoder=precomputed", *(f"encoder.{one}" for one in settings)).startswith(told)


def test_doctor_checks_the_file_and_leaves_the_store_alone(in_process: Program, pool_folder: Path) -> None:
    doctor = ("doctor", *on_folder(pool_folder), *SELECT, OWN_STORE)
    assert "features not available" not in in_process(*doctor, *saved(pool_folder / "a.npy")).stdout
    result = in_process(*doctor, *saved(pool_folder / "a.npy", with_row(9, 0)), "--json", "found.json")
    assert result.returncode == 1
    (finding,) = (
        one
        for one in json.loads((pool_folder / "found.json").read_text())["findings"]
        if one["kind"] == "features not available"
    )
    assert finding["severity"] == "fault"
    assert "a.npy: the feature of '0009.png', in row 9 from 0, is zero" in finding["detail"]
    (pool_folder / "a.npy").unlink()
    gone = in_process(*doctor, "encoder=precomputed", "encoder.file=a.npy", "encoder.ids=a.json")
    assert gone.returncode == 1 and "a.npy: there is no such file" in " ".join(gone.stdout.split())
    # A strategy that reads no features needs none.
    chosen = ["strategy=random", *saved(pool_folder / "a.npy", with_row(9, 0))]
    assert "features not available" not in in_process(*doctor, *chosen).stdout
    assert not (pool_folder / "outputs/store/features").exists()


OWN = """
import numpy as np
from presel.component import component
from presel.data.images import open_image
from presel.models.encoder import ImageEncoder

@component
class Colors(ImageEncoder):
    '''Mean color.'''
    batch_size: int = 16

    def check(self):
        pass

    def encode(self, batches, workers, accelerator="auto"):
        for batch in batches:
            yield np.stack([np.asarray(open_image(file)).mean(axis=(0, 1)) for file in batch]).astype("f2")

@component
class Unfinished(ImageEncoder):
    batch_size: int = 16

    def check(self):
        pass
"""


def test_an_encoder_from_outside_is_accepted(
    in_process: Program, pool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "colors_of_mine", raising=False)
    (pool_folder / "colors_of_mine.py").write_text(OWN)
    (pool_folder / "encoder").mkdir()
    run = ("run", "--config-dir", str(pool_folder), *on_folder(pool_folder), *SELECT, "encoder=mine")

    def choose(target: str) -> None:
        (pool_folder / "encoder/mine.yaml").write_text(f"_target_: {target}\nbatch_size: 16\n")

    choose("colors_of_mine.Colors")
    in_process.succeeds(*run)
    assert features(pool_folder).shape == (60, 3)
    choose("colors_of_mine.Unfinished")
    assert "abstract class Unfinished" in in_process.refuses(*run)
    choose("presel.models.lvlm.Lvlm")
    assert in_process.refuses(*run).endswith(
        "which is no such class; name a subclass of presel.models.encoder.ImageEncoder or "
        "presel.models.precomputed.Precomputed"
    )
