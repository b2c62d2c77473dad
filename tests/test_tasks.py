"""Tasks that are discovered: neither order nor names decide them, and their number must fit."""

from pathlib import Path

import pytest

from presel.data.image_folder import ImageFolder
from presel.distributed.runtime import Runtime
from presel.errors import PreselError
from presel.models.encoder import Encoder
from presel.models.hardware import Hardware
from presel.stages.features import FeaturesStage
from presel.stages.pool import PoolStage
from presel.stages.tasks import DiscoveredTasks, GivenTasks, numbered_tasks
from presel.storage.store import Store
from tests.pictures import picture


def pool(folder: Path) -> PoolStage:
    return PoolStage(source=ImageFolder(images=folder), workers=0, with_tasks=False)


def features(folder: Path) -> FeaturesStage:
    return FeaturesStage(
        pool=pool(folder),
        encoder=Encoder(path="builtin:digit_dinov2"),
        runtime=Runtime(hardware=Hardware(accelerator="cpu")),
    )


def test_names_are_numbered_in_ascending_order() -> None:
    assert numbered_tasks(2) == ["task_00", "task_01"]
    for count in (10, 101):
        assert len(numbered_tasks(count)) == count
        assert sorted(numbered_tasks(count)) == numbered_tasks(count)


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


def test_there_are_no_more_tasks_than_images(tmp_path: Path, store: Store) -> None:
    picture(tmp_path / "images" / "a.png", 0)
    picture(tmp_path / "images" / "b.png", 1)
    discovered = DiscoveredTasks(n_tasks=2).pool(features(tmp_path / "images"))
    discovered.check_data(store)
    assert discovered.task_names(store) == ["task_00", "task_01"]
    with pytest.raises(PreselError, match=r"tasks.n_tasks=3 is above the pool's 2 images"):
        DiscoveredTasks(n_tasks=3).pool(features(tmp_path / "images")).check_data(store)


def test_given_tasks_are_those_of_the_source(tmp_path: Path, store: Store) -> None:
    for number, task in enumerate("bab"):
        picture(tmp_path / "images" / task / f"{number}.png", number)
    given = GivenTasks().pool(features(tmp_path / "images"))
    assert given == pool(tmp_path / "images")
    assert given.task_names(store) == ["a", "b"]
