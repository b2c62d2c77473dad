"""Tasks that are discovered: neither order nor names decide them, and their number must fit."""

from pathlib import Path

import pandas as pd
import pytest

from presel.data.image_folder import ImageFolder
from presel.errors import PreselError
from presel.models.encoder import Encoder
from presel.models.hardware import Hardware
from presel.stages.features import FeaturesStage
from presel.stages.pool import PoolStage
from presel.stages.tasks import DiscoveredTasks, GivenTasks, task_names
from presel.storage.store import Store
from tests.pictures import picture


def pool(folder: Path) -> PoolStage:
    return PoolStage(ImageFolder(images=folder), workers=0, with_tasks=False)


def features(folder: Path) -> FeaturesStage:
    return FeaturesStage(
        pool(folder), Encoder(path="builtin:digit_dinov2"), workers=0, hardware=Hardware(accelerator="cpu")
    )


def test_names_are_numbered_in_ascending_order() -> None:
    assert task_names(2) == ["task_00", "task_01"]
    for count in (10, 101):
        assert len(task_names(count)) == count
        assert sorted(task_names(count)) == task_names(count)


def test_the_images_alone_decide_the_tasks(tmp_path: Path, store: Store) -> None:
    for number in range(12):
        picture(tmp_path / "first" / f"{number:02}.png", number, light=number < 4)
        picture(tmp_path / "second" / "a" / f"{11 - number:02}.png", number, light=number < 4)
    tasks = DiscoveredTasks(n_tasks=2)
    first, second = (tasks.pool(features(tmp_path / name)) for name in ("first", "second"))
    table = store.load(first)
    assert table["image"].tolist() == [f"{number:02}.png" for number in range(12)]
    assert table["task"].value_counts().tolist() == [8, 4]
    assert table["task"].nunique() == len(set(zip(table["task"], table["id"] < "04.png", strict=True))) == 2
    assert store.load(second)["task"].tolist() == table["task"].tolist()[::-1]
    assert first.contents(store).tolist() == pool(tmp_path / "first").contents(store).tolist()


def test_there_are_no_more_tasks_than_images() -> None:
    images = pd.DataFrame({"task": [None, None]})
    assert DiscoveredTasks(n_tasks=2).names(images) == ["task_00", "task_01"]
    with pytest.raises(PreselError, match=r"tasks.n_tasks=3 is above the pool's 2 images"):
        DiscoveredTasks(n_tasks=3).names(images)


def test_given_tasks_are_those_of_the_source(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert GivenTasks().pool(features(tmp_path)) == pool(tmp_path)
    assert GivenTasks().names(pd.DataFrame({"task": ["b", "a", "b"]})) == ["a", "b"]
