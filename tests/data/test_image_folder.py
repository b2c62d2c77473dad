"""Pools that are a folder of images: what is listed, what is left out, what is refused."""

import os
import tempfile
from pathlib import Path
from random import Random

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from presel.data.decoding import FORMATS
from presel.data.image_folder import ImageFolder, is_hidden, list_folder
from presel.data.images import SUFFIXES
from presel.data.listing import Item
from presel.doctor.findings import image_files
from presel.errors import PreselError
from presel.stages.pool import PoolStage
from presel.storage.store import Store
from tests.pictures import picture


def touch(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(PreselError) as caught:
        list_folder(folder)
    return str(caught.value)


def test_the_first_sub_folder_is_the_task_and_the_path_is_the_id(tmp_path: Path) -> None:
    paths = ["cats/1.jpg", "dogs/1.jpg", "dogs/young ones/a/2.JPEG", "日本語/ein Kätzchen.WebP"]
    assert list_folder(touch(tmp_path, *reversed(paths))).items == [
        Item("cats/1.jpg", "cats/1.jpg", "cats"),
        Item("dogs/1.jpg", "dogs/1.jpg", "dogs"),
        Item("dogs/young ones/a/2.JPEG", "dogs/young ones/a/2.JPEG", "dogs"),
        Item("日本語/ein Kätzchen.WebP", "日本語/ein Kätzchen.WebP", "日本語"),
    ]


def test_what_is_no_image_is_left_out_and_counted(tmp_path: Path) -> None:
    images = ["a/1.png", "photos.jpg/1.png"]
    others = ["a/1.HEIC", "a/2.heic", "a/notes", "a/.DS_Store", "a/._1.png", ".thumbs/1.png", "Thumbs.db"]
    systems = ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "__MACOSX", "System Volume Information"]
    folders = [f"{folder}/1.png" for folder in (*systems, ".Trash-1000", "a/.AppleDouble", "a/@eaDir")]
    listing = list_folder(touch(tmp_path, *images, *others, *folders))
    assert [item.image for item in listing.items] == images
    assert listing.other_files == {"hidden": 12, ".heic": 2, "without a suffix": 1, ".db": 1}
    assert listing.describe_skipped() == "12 hidden, 2 .heic, 1 .db, 1 without a suffix"
    assert set(image_files(tmp_path)) == set(images)


def test_images_in_no_sub_folder_have_the_task_that_is_named_for_them(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "a/2.png")
    assert [item.task for item in list_folder(tmp_path).items] == [None, "a"]
    assert [item.task for item in list_folder(tmp_path, "other").items] == ["other", "a"]


name = st.text(
    st.characters(exclude_characters="/\\\0", exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=8
).filter(lambda text: bool(text.strip()) and not is_hidden(text) and text[1:2] != ":")


@settings(max_examples=40)
@given(
    st.lists(st.tuples(name, name), min_size=1, max_size=6, unique=True), st.randoms(use_true_random=False)
)
def test_the_order_of_creation_has_no_say(paths: list[tuple[str, str]], random: Random) -> None:
    images = [f"{folder}/{file}.png" for folder, file in paths]
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        listing = list_folder(touch(Path(first), *images))
        random.shuffle(images)
        assert list_folder(touch(Path(second), *images)) == listing
        assert sorted(images) == [item.image for item in listing.items]


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    assert f"{tmp_path}: there is no image in it or its sub-folders (no file); give" in refusal(tmp_path)
    assert "(2 .heic)" in refusal(touch(tmp_path, "a/1.heic", "a/2.heic"))
    assert "gone: there is no such folder" in refusal(tmp_path / "gone")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "a\\b.png",
            r"an image is 'a\\\\b.png', with a backslash, which image paths may not have; rename it",
        ),
        (" /b.png", "the sub-folder of ' /b.png' is blank; rename it"),
        (os.fsdecode(b"a/\xff.png"), r"'a/\\udcff.png' has half of a surrogate pair, .*; rename it"),
    ],
)
def test_names_that_cannot_be_kept_are_refused(tmp_path: Path, path: str, said: str) -> None:
    touch(tmp_path, path)
    with pytest.raises(PreselError, match=said):
        list_folder(tmp_path)


def test_links_to_folders_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.png", "pool/a/1.png")
    (tmp_path / "pool/b").symlink_to(tmp_path / "elsewhere")
    assert "pool/b: a symbolic link to a folder" in refusal(tmp_path / "pool")


def test_files_that_are_no_usable_image_are_rejected(store: Store, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    picture(pool / "a/good.png")
    picture(tmp_path / "outside.png", 1).rename(pool / "a/png in truth.jpg")
    (pool / "a/text.jpg").write_text("no picture")
    (pool / "a/out.png").symlink_to(picture(tmp_path / "secret.png", 2))
    (pool / "a/nowhere.png").symlink_to(pool / "gone.png")
    stage = PoolStage(source=ImageFolder(images=pool, max_rejected_share=1), workers=0)
    assert store.load(stage)["image"].tolist() == ["a/good.png", "a/png in truth.jpg"]
    rejected = pd.read_parquet(store.folder(stage) / "rejected.parquet")
    assert dict(zip(rejected["image"], rejected["why"], strict=True)) == {
        "a/nowhere.png": "missing",
        "a/out.png": "leaves the image folder",
        "a/text.jpg": "a text file, not an image; fetch the image again",
    }


def test_an_image_without_a_task_stops_the_run_unless_tasks_are_discovered(
    store: Store, tmp_path: Path
) -> None:
    picture(tmp_path / "a/1.png")
    picture(tmp_path / "2.png", 2)
    source = ImageFolder(images=tmp_path)
    for _ in range(2):
        with pytest.raises(
            PreselError, match=r"1 of 2 images have no task \(first: '2.png'\); .*pool.task=NAME"
        ):
            PoolStage(source=source, workers=0).check_data(store)
        # The second time the result is at hand.
        assert len(store.load(PoolStage(source=source, workers=0, with_tasks=False))) == 2


def test_what_decides_the_pool(tmp_path: Path) -> None:
    picture(tmp_path / "a/1.png")

    def identity(**settings: str) -> object:
        return ImageFolder(images=tmp_path, **settings).identity()  # type: ignore[arg-type]

    first = identity()
    touch(tmp_path, "a/notes.txt")
    assert identity() == first
    assert identity(task="other") != first
    picture(tmp_path / "a/2.png")
    assert identity() != first


def test_every_suffix_belongs_to_a_format_that_is_read() -> None:
    Image.init()
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in SUFFIXES} == set(FORMATS)
