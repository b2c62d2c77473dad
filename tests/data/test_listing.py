"""Random samples of a pool: which images are drawn, and that no other is opened."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.data.image_folder import ImageFolder
from presel.data.listing import Item, Listing
from presel.data.sources import LlavaJson
from presel.errors import PreselError
from presel.stages.pool import PoolStage
from presel.storage.store import Store
from tests.pictures import picture


def listing(n_items: int, n_tasks: int = 3) -> Listing:
    return Listing([Item(str(n), f"{n}.png", f"task {n % n_tasks}") for n in range(n_items)])


SIZES = st.none() | st.integers(1, 40)


@given(st.integers(1, 40), SIZES, SIZES, st.randoms())
def test_a_sample_depends_on_ids_alone(
    n_items: int, size: int | None, per_task: int | None, generator: random.Random
) -> None:
    whole = listing(n_items)
    sample = whole.sample(size, per_task)
    shuffled = generator.sample(whole.items, n_items)
    assert set(Listing(shuffled).sample(size, per_task).items) == set(sample.items)
    assert [item for item in whole.items if item in sample.items] == sample.items
    tasks = [item.task for item in whole.items]
    left = sum(min(tasks.count(task), per_task or n_items) for task in set(tasks))
    assert len(sample.items) == min(size or n_items, left)


@given(st.integers(1, 20), st.integers(0, 20), st.booleans())
def test_a_smaller_sample_is_part_of_a_larger_one(smaller: int, more: int, of_each_task: bool) -> None:
    def ids(size: int) -> set[str]:
        drawn = listing(40).sample(None, size) if of_each_task else listing(40).sample(size, None)
        return {item.id for item in drawn.items}

    assert ids(smaller) <= ids(smaller + more)


def test_tasks_keep_their_proportions() -> None:
    drawn = [item.task for item in listing(3000).sample(600, None).items]
    # Six standard deviations about 200.
    assert all(abs(drawn.count(f"task {n}") - 200) < 63 for n in range(3))


def test_images_outside_the_sample_are_not_opened(tmp_path: Path, store: Store) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    items = listing(20).items
    records = [item._asdict() | {"conversations": turns} for item in items]
    (tmp_path / "pool.json").write_text(json.dumps(records))
    drawn = listing(20).sample(8, None).items
    for number, item in enumerate(drawn):
        picture(tmp_path / "images" / item.image, number)
    source = LlavaJson(annotations=tmp_path / "pool.json", images=tmp_path / "images", limit=8)
    stage = PoolStage(source=source, workers=0)
    assert store.load(stage)["id"].tolist() == [item.id for item in drawn]
    assert store.manifest(stage)["measured"]["rejected"] == 0
    other = LlavaJson(annotations=tmp_path / "pool.json", images=tmp_path / "images", limit=7)
    assert PoolStage(source=other, workers=0).key != stage.key


def test_a_limit_for_each_task_needs_tasks(tmp_path: Path, store: Store) -> None:
    picture(tmp_path / "images/1.png")
    source = ImageFolder(images=tmp_path / "images", limit_per_task=1)
    stage = PoolStage(source=source, workers=0, with_tasks=False)
    with pytest.raises(PreselError, match=r"pool\.limit_per_task needs images that each name a task; use"):
        store.load(stage)
