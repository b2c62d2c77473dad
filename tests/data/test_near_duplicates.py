"""What `near_duplicates` leaves out of a pool: by brute force, whatever the order and the workers."""

import random
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from presel.data.image_folder import ImageFolder
from presel.data.listing import sampling_order
from presel.data.near_duplicates import NearDuplicates, groups_of_thumbnails, near_duplicates_to_drop
from presel.errors import PreselError
from presel.stages.pool import PoolStage
from presel.storage.store import Store
from tests.helpers import OWN_STORE, Program, last_run

THRESHOLD = 0.92


def cosines(thumbnails: list[bytes]) -> np.ndarray:
    """Cosine of each pair, each channel centered; (n, n)."""
    pixels = np.stack([np.frombuffer(one, np.uint8) for one in thumbnails]).reshape(-1, 256, 3).astype(float)
    vectors = (pixels - pixels.mean(axis=1, keepdims=True)).reshape(len(pixels), -1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors @ vectors.T)


def connected(near: np.ndarray) -> list[int]:
    """The lowest row that each row is joined with by a chain of near ones."""
    reached = near.copy()
    for row in range(len(near)):
        reached |= np.outer(reached[:, row], reached[row])
    return [int(np.flatnonzero(row)[0]) for row in reached]


def same_groups(one: list[int], other: list[int]) -> bool:
    pairs = set(zip(one, other, strict=True))
    return len(pairs) == len(set(one)) == len(set(other))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.randoms())
def test_groups_are_the_connected_components_of_near_duplicates(seed: int, order: random.Random) -> None:
    generator = np.random.default_rng(seed)
    pictures = [generator.integers(60, 200, 768) for _ in range(6)]
    # Chains: each is the one before it with more noise, so that their ends differ more than neighbors do.
    for start in range(3):
        last = pictures[start]
        for _ in range(3):
            last = last + generator.normal(0, 10, 768)
            pictures.append(last)
    thumbnails = [np.clip(one, 0, 255).astype(np.uint8).tobytes() for one in pictures]
    # A copy, which needs no comparison.
    thumbnails.append(thumbnails[0])
    groups = groups_of_thumbnails(thumbnails).tolist()
    assert same_groups(groups, connected(cosines(thumbnails) >= THRESHOLD))
    rows = list(range(len(thumbnails)))
    order.shuffle(rows)
    assert groups_of_thumbnails([thumbnails[row] for row in rows]).tolist() == [groups[row] for row in rows]


RECORDS = st.lists(
    st.tuples(
        st.sampled_from(["vqa", "ocr"]),
        # Group of each image.
        st.lists(st.integers(0, 2), min_size=1, max_size=2),
    ),
    min_size=1,
    max_size=12,
)


def table_of(rows: list[list[tuple[str, str, int]]]) -> pd.DataFrame:
    return pd.DataFrame([image for record in rows for image in record], columns=["id", "task", "group"])


@given(RECORDS, st.sampled_from(["keep", "keep_one", "drop"]), st.booleans(), st.randoms())
def test_which_records_are_left_out_depends_on_no_order(
    records: list[tuple[str, list[int]]], how: NearDuplicates, by_task: bool, order: random.Random
) -> None:
    rows = [
        [(f"{number:02}", task, group) for group in images] for number, (task, images) in enumerate(records)
    ]

    def left_out() -> dict[str, str]:
        return near_duplicates_to_drop(table_of(rows), how, by_task).to_dict()

    def sort_of(record: list[tuple[str, str, int]]) -> str:
        return str((by_task and record[0][1], [image[2] for image in record]))

    found = left_out()
    order.shuffle(rows)
    assert left_out() == found
    expected = set()
    for _, alike in groupby(sorted(rows, key=sort_of), sort_of):
        group = sorted(alike, key=lambda record: sampling_order(record[0][0]))
        spared = {"keep": len(group), "keep_one": 1, "drop": len(group) == 1}[how]
        expected |= {record[0][0] for record in group[spared:]}
        assert all(found[record[0][0]] in {other[0][0] for other in group} for record in group[spared:])
    assert found.keys() == expected
    assert not any(one == other for one, other in found.items())


@given(RECORDS, st.integers(1, 12), st.booleans())
def test_the_ones_kept_of_a_sample_are_kept_of_every_larger_one(
    records: list[tuple[str, list[int]]], size: int, by_task: bool
) -> None:
    rows = [[(str(number), task, group) for group in images] for number, (task, images) in enumerate(records)]
    rows.sort(key=lambda record: sampling_order(record[0][0]))
    small, large = (
        {record[0][0] for record in part}
        - set(near_duplicates_to_drop(table_of(part), "keep_one", by_task).index)
        for part in (rows[:size], rows)
    )
    assert small <= large


def noise(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve different pictures in two tasks; 0 again smaller and copied, and 1 in the other task."""
    for number in range(12):
        (tmp_path / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        noise(number).save(tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png")
    images = tmp_path / "images"
    noise(0).resize((40, 30)).save(images / "a" / "00 small.png")
    (images / "a" / "00 copy.png").write_bytes((images / "a" / "00.png").read_bytes())
    noise(1).save(images / "a" / "01.jpg", quality=60)
    return images


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_in_the_order_of_samples_stays_and_other_tasks_do_not_matter(
    folder: Path, store: Store, workers: int
) -> None:
    pools = {}
    for how in ("keep", "keep_one", "drop"):
        stage = PoolStage(source=ImageFolder(images=folder, near_duplicates=how), workers=workers)
        pools[how] = set(store.load(stage)["id"])
        assert stage.left_out(store) == ({} if how == "keep" else {"near_duplicates": 15 - len(pools[how])})
    alike = {"a/00 small.png", "a/00.png", "a/00 copy.png"}
    assert pools["keep"] - pools["keep_one"] == alike - {min(alike, key=sampling_order)}
    assert pools["keep"] - pools["drop"] == alike
    listed = pd.read_parquet(store.folder(stage) / "left_out.parquet").set_index("id")["why"]
    assert listed.index.isin(alike).all()
    assert set(listed.str.removeprefix("resembles ").str.strip("'")) < alike


def test_a_sample_without_near_duplicates_is_part_of_every_larger_one(folder: Path, store: Store) -> None:
    def pool(limit: int | None) -> set[str]:
        source = ImageFolder(images=folder, task="x", limit=limit, near_duplicates="keep_one")
        return set(store.load(PoolStage(source=source, workers=0, with_tasks=False))["id"])

    pools = [pool(limit) for limit in (4, 8, 12, None)]
    assert all(small <= large for small, large in pairwise(pools))
    assert len(pools[-1]) == 12


def test_a_pool_of_near_duplicates_only_is_refused(tmp_path: Path, store: Store) -> None:
    for quality in (50, 90):
        (tmp_path / "a").mkdir(exist_ok=True)
        noise(0).save(tmp_path / "a" / f"{quality}.jpg", quality=quality)
    stage = PoolStage(source=ImageFolder(images=tmp_path, near_duplicates="drop"), workers=0)
    with pytest.raises(PreselError, match=r"near_duplicates=drop leaves none of 2 images, .* by keep_one"):
        store.load(stage)


def test_what_the_doctor_finds_can_be_left_out(in_process: Program, folder: Path) -> None:
    (folder.parent / "out.txt").write_text("# what the map's lasso copied\nb/*\n")
    pool = ["pool=image_folder", f"pool.images={folder}", "executor.workers=0", "strategy=random", "budget=5"]
    assert "near-duplicates: 2" in in_process.succeeds("doctor", *pool, "until=selection").stdout
    cured = [
        *pool,
        "pool.near_duplicates=keep_one",
        f"pool.exclude={folder.parent}/out.txt",
        "until=selection",
    ]
    told = in_process.succeeds("doctor", *cured).stdout
    assert "near-duplicates:" not in told
    assert "6 records are left out by pool.exclude" in told
    assert "2 records are left out by pool.near_duplicates" in told
    assert "7 records, 7 usable images (7 different) in 1 tasks" in told
    result = in_process.succeeds("run", *cured, OWN_STORE)
    assert "records left out: 6 by pool.exclude, 2 by pool.near_duplicates=keep_one" in result.stdout
    assert "tasks left without an image, which the run goes without: 'b'" in result.stdout + result.stderr
    run = last_run(in_process.folder)
    assert str(run.stages["images"].folder / "left_out.parquet") in result.stdout
    assert run.left_out == {"exclude": 6, "near_duplicates": 2}
    assert len(run.pool) == 7
    settings = run.stages["images"].manifest["settings"]["source"]
    assert settings["near_duplicates"] == "keep_one"
    assert len(settings["exclude"]) == 64


def test_where_tasks_are_discovered_the_doctor_and_the_run_compare_the_whole_pool(
    in_process: Program, folder: Path
) -> None:
    settings = [
        *("pool=image_folder", f"pool.images={folder}", "executor.workers=0", "strategy=random", "budget=5"),
        *("tasks=discovered", "tasks.n_tasks=2", "pool.near_duplicates=keep_one", "until=selection"),
    ]
    # Also picture 1, of which the other task has a copy.
    told = in_process.succeeds("doctor", *settings).stdout
    assert "3 records are left out by pool.near_duplicates" in told
    in_process.succeeds("run", *settings, OWN_STORE)
    assert last_run(in_process.folder).left_out == {"near_duplicates": 3}


def test_the_tasks_that_count_are_in_the_key_only_where_something_is_left_out(folder: Path) -> None:
    def key(near_duplicates: NearDuplicates, with_tasks: bool) -> str:
        source = ImageFolder(images=folder, near_duplicates=near_duplicates)
        return PoolStage(source=source, workers=0, with_tasks=with_tasks).key

    assert key("keep", True) == key("keep", False)
    assert len({key(how, tasks) for how in ("keep", "keep_one", "drop") for tasks in (True, False)}) == 5


@pytest.mark.parametrize("group", ["evaluation", "validation"])
def test_questions_about_one_picture_are_not_near_duplicates(in_process: Program, group: str) -> None:
    error = in_process.refuses("run", f"{group}.near_duplicates=keep_one", "until=selection")
    assert f"there is no setting '{group}.near_duplicates'" in error
