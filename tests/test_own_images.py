"""The real command line on pools that are just images, and tasks that are discovered."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from PIL import Image

from presel.component import component
from presel.errors import PreselError
from presel.report.gallery import gallery
from presel.stages.pool import PoolStage, readable_again
from presel.stages.selection import SelectionStage
from presel.storage.store import Store
from presel.strategies.base import SelectionContext, Strategy
from tests.helpers import OWN_STORE, Program, last_run, on_folder, refused, stage_lines
from tests.pictures import picture, two_kinds

SELECT = ("until=selection", "strategy=random", "budget=10", "executor.workers=0")


def selection(folder: Path) -> pd.DataFrame:
    """What the last run chose from."""
    return last_run(folder).selection


def as_folder(folder: Path) -> list[str]:
    two_kinds(folder / "images")
    (folder / "images" / "camera.heic").touch()
    return ["pool=image_folder", "pool.images=images"]


def as_manifest(folder: Path) -> list[str]:
    paths = [path.relative_to(folder / "images").as_posix() for path in two_kinds(folder / "images")]
    table = pd.DataFrame({"file": paths, "kind": [path.split("/")[0] for path in paths]})
    table.to_parquet(folder / "pool.parquet")
    columns = ["pool.image_column=file", "pool.task_column=kind"]
    return ["pool=manifest", "pool.manifest=pool.parquet", "pool.images=images", *columns]


def as_dataset(folder: Path) -> list[str]:
    paths = two_kinds(folder / "originals")
    rows = {"image": list(map(str, paths)), "label": [path.parent.name for path in paths]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.class_encode_column("label").save_to_disk(folder / "saved")
    return ["pool=hf_dataset", "pool.path=saved", "pool.task_column=label"]


def as_shards(folder: Path) -> list[str]:
    paths = two_kinds(folder / "originals")
    for number in range(2):
        with tarfile.open(folder / f"{number:03}.tar", "w") as archive:
            for path in paths[number::2]:
                for ending, data in (("png", path.read_bytes()), ("cls", path.parent.name.encode())):
                    member = tarfile.TarInfo(f"{path.stem}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return ["pool=webdataset", 'pool.shards="{000..001}.tar"']


@pytest.mark.parametrize("make", [as_folder, as_manifest, as_dataset, as_shards])
def test_every_source_is_selected_from(
    make: Callable[[Path], list[str]], in_process: Program, tmp_path: Path
) -> None:
    pool = make(tmp_path)
    first = in_process.succeeds("run", *pool, *SELECT)
    assert ("files left out, of kinds that are not read: 1 .heic" in first.stdout) == (make is as_folder)
    table = selection(tmp_path)
    assert table["task"].value_counts().to_dict() == {"cats": 20, "dogs": 20}
    assert table["selected"].sum() == 10
    second = in_process.succeeds("run", *pool, *SELECT, "strategy=typiclust")
    assert stage_lines(second.stdout)["pool"] == "reused"
    assert selection(tmp_path)["selected"].sum() > 0


def test_endings_of_members_may_be_named_as_users_write_them(in_process: Program, tmp_path: Path) -> None:
    named = ("pool.image_key=.PNG", "pool.task_key=CLS")
    in_process.succeeds("run", *as_shards(tmp_path), *named, *SELECT)
    assert set(selection(tmp_path)["task"]) == {"cats", "dogs"}


@pytest.mark.parametrize("make", [as_folder, as_manifest, as_dataset, as_shards])
def test_of_every_source_a_sample_can_be_used(
    make: Callable[[Path], list[str]], in_process: Program, tmp_path: Path
) -> None:
    limits = ("pool.limit=24", "pool.limit_per_task=15")
    result = in_process.succeeds("run", *make(tmp_path), *SELECT, *limits)
    assert "a random sample of 24 of 40 images" in result.stdout
    sizes = selection(tmp_path)["task"].value_counts()
    assert sizes.sum() == 24
    assert sizes.max() <= 15


def test_a_strategy_that_leaves_budget_is_reported(in_process: Program, tmp_path: Path) -> None:
    """TypiClust leaves out small clusters, and 30 clusters of 40 images are small."""
    run = in_process.succeeds(
        *("run", *as_folder(tmp_path), *SELECT, "budget=30"),
        *("strategy=typiclust", "strategy.min_cluster_size=2"),
    )
    chosen = selection(tmp_path)["selected"].sum()
    assert chosen < 30
    assert f"strategy=typiclust chose {chosen} images where the budget is 30" in run.stdout + run.stderr


def test_unusable_images_are_reported_by_every_run(in_process: Program, tmp_path: Path) -> None:
    pool = [*as_folder(tmp_path), "pool.max_rejected_share=0.1"]
    broken = next((tmp_path / "images/cats").iterdir())
    broken.write_bytes(broken.read_bytes()[:100])
    for _ in range(2):
        told = in_process.succeeds("run", *pool, *SELECT, OWN_STORE)
        assert "pool: 1 of 40 images are unusable and left out; " in " ".join(
            (told.stdout + told.stderr).split()
        )


def test_images_that_can_be_opened_meanwhile_are_found(tmp_path: Path) -> None:
    reasons = {
        "a.png": "cannot be opened (Permission denied)",
        "b.png": "truncated",
        "c.png": "cannot be opened (x)",
    }
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    rejected = pd.DataFrame({"image": list(reasons), "why": list(reasons.values())})
    assert readable_again(rejected, tmp_path) == ["a.png"]


def test_the_doctor_warns_of_photographs_that_are_not_read(in_process: Program, tmp_path: Path) -> None:
    found = in_process("doctor", *as_folder(tmp_path), *SELECT, "--json", "found.json")
    (warning,) = [
        one
        for one in json.loads((tmp_path / "found.json").read_text())["findings"]
        if one["kind"] == "images of a kind that is not read"
    ]
    assert warning["severity"] == "warning"
    assert warning["where"].startswith(".heic in ")
    assert found.returncode == 0


def test_the_doctor_unpacks_archives_once_for_the_run_too(in_process: Program, tmp_path: Path) -> None:
    run = (*as_shards(tmp_path), *SELECT, OWN_STORE)
    assert "40 usable images" in in_process.succeeds("doctor", *run).stdout
    lines = stage_lines(in_process.succeeds("run", *run).stdout)
    assert [label for label, state in lines.items() if state == "reused"] == ["unpacked"]


@pytest.mark.parametrize("returned", [None, ["a"], pd.DataFrame({"name": ["a"]})])
def test_a_strategy_that_returns_no_table_is_reported(
    returned: Any, store: Store, pool: PoolStage, tmp_path: Path
) -> None:
    @component
    class Mine(Strategy):
        def select(self, context: SelectionContext) -> pd.DataFrame:
            table: pd.DataFrame = returned
            return table

    stage = SelectionStage(strategy=Mine(), pool=pool, budget=3, seed=0, needed={})
    with pytest.raises(PreselError, match=r"Mine.select returned .*, not a table"):
        store.ensure(stage)


def test_discovered_tasks(in_process: Program, tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / "flat" / f"{number:03}.png", number, light=number >= 25)
    pool = ["pool=image_folder", "pool.images=flat"]
    discovered = ["tasks=discovered", "tasks.n_tasks=2"]
    first = in_process.succeeds("run", *pool, *discovered, *SELECT)
    assert "tasks were discovered by clustering: 2 tasks of 15 to 25 images" in first.stdout
    table = selection(tmp_path)
    tasks = table["task"].where(table["id"] < "025.png")
    assert sorted(table["task"].unique()) == ["task_00", "task_01"]
    assert (tasks.count(), tasks.nunique()) == (25, 1)
    assert list(gallery({"random": last_run(tmp_path)}, 3)) == ["task_00", "task_01"]
    other = in_process("run", *pool, *discovered, *SELECT, "seed=1")
    runs = sorted(file.parent for file in tmp_path.glob("outputs/runs/*/*/run.json"))
    assert stage_lines(other.stdout)["tasks (2 discovered)"] == "reused"
    compared = in_process("diff", *map(str, runs))
    assert compared.returncode == 1
    assert "task_00" in compared.stdout
    # The features were computed on the way to the tasks, and serve whatever the tasks are.
    more = in_process("run", *pool, *discovered, *SELECT, "tasks.n_tasks=3", "strategy=typiclust")
    assert stage_lines(more.stdout)["features"] == "reused"


def test_presel_clusters_the_discovered_tasks_and_names_them_in_the_training_file(
    in_process: Program, pool_folder: Path
) -> None:
    for number in range(20):
        Image.new("RGB", (24, 24), "white").save(pool_folder / "images" / f"{number:04}.png")
    overrides = [*on_folder(pool_folder), "tasks=discovered", "tasks.n_tasks=2", "until=instructions"]
    result = in_process.succeeds("run", *overrides, "budget=0.5", "strategy.weighting=size", OWN_STORE)
    table = selection(pool_folder).set_index("id")
    assert table["task"].value_counts().to_dict().keys() == {"task_00", "task_01"}
    records = json.loads(last_run(pool_folder).paths["instructions"].read_text())
    assert {record["id"]: record["task"] for record in records} == table["task"][table["selected"]].to_dict()
    assert stage_lines(result.stdout)["clusters"] == "computed"


def test_mere_images_need_a_provider_of_instructions(in_process: Program, tmp_path: Path) -> None:
    pool = as_folder(tmp_path)
    result = in_process("run", *pool, "until=instructions", "executor.workers=0")
    refused(result, "this pool has images and no instructions; choose who writes them")
    assert "pool" not in result.stdout


def test_a_task_of_one_image_can_be_chosen_from(in_process: Program, tmp_path: Path) -> None:
    pool = as_folder(tmp_path)
    picture(tmp_path / "images" / "lonely" / "1.png", 99)
    in_process.succeeds("run", *pool, *SELECT)
    assert selection(tmp_path)["task"].nunique() == 3


@pytest.mark.parametrize(
    ("given", "first"),
    [
        (r'"{^000: first, .: rest}"', 10),
        (r'"{\"^000[0-4]\": first, \".\": rest}"', 5),
        ("{000: first, 00: rest}", 10),
    ],
)
def test_tasks_may_come_from_patterns_on_the_command_line(
    in_process: Program, pool_folder: Path, given: str, first: int
) -> None:
    in_process.succeeds("run", *on_folder(pool_folder), *SELECT, f"pool.task_patterns={given}", OWN_STORE)
    chosen = selection(pool_folder)
    assert chosen["task"].value_counts().to_dict() == {"first": first, "rest": 60 - first}


def test_patterns_that_are_no_mapping_are_refused(in_process: Program, pool_folder: Path) -> None:
    told = in_process.refuses(
        "run", *on_folder(pool_folder), *SELECT, 'pool.task_patterns="first: {"', OWN_STORE
    )
    assert "pool.task_patterns" in told
