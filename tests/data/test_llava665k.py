"""LLaVA-665K's tasks, on records worded as the mixture words them."""

import json
from pathlib import Path
from typing import Any

import pytest

from presel.data.llava665k import EXPECTED, Llava665k, Llava665kTasks
from presel.errors import PreselError
from tests.llava665k_records import BOX, MIXTURE, record


def source(folder: Path, records: list[dict[str, Any]], **groups: list[str]) -> Llava665k:
    (folder / "mix.json").write_text(json.dumps(records))
    return Llava665k(annotations=folder / "mix.json", images=folder, groups=groups)


def test_every_task_by_folder_and_wording(tmp_path: Path) -> None:
    text_only = [record(None, "Write a poem."), record(None, "And another.")]
    records = [
        text_only[0],
        *MIXTURE.values(),
        text_only[1],
        record("coco/train2017/2.jpg", f"<image>\n{BOX}"),
    ]
    contents = source(tmp_path, records).listed_files.contents()
    assert contents.text_only == 2
    assert [one.task for one in contents.records] == [*MIXTURE, "refcoco"]
    # All have one id in the file; their positions tell them apart.
    assert [one.id for one in contents.records] == [str(place) for place in [*range(1, 12), 13]]
    assert set(EXPECTED) == set(MIXTURE)
    assert sum(EXPECTED.values()) + 40688 == 665298


def test_grouped_tasks_are_one(tmp_path: Path) -> None:
    grouped = source(tmp_path, list(MIXTURE.values()), vqa=["vqav2", "gqa"])
    assert {one.task for one in grouped.listed_files.records()} == set(MIXTURE) - {"vqav2", "gqa"} | {"vqa"}
    assert grouped.identity() != source(tmp_path, list(MIXTURE.values())).identity()
    with pytest.raises(ValueError, match="there is no task 'vqa2'"):
        source(tmp_path, [], vqa=["vqa2"])
    with pytest.raises(ValueError, match="task 'vg' is in two groups"):
        source(tmp_path, [], a=["vg"], b=["vg", "gqa"])


def test_a_folder_that_is_not_the_mixtures_is_reported() -> None:
    with pytest.raises(PreselError, match=r"'sam/1.jpg', in none of LLaVA-665K's folders coco, gqa"):
        Llava665kTasks().task_of(record("sam/1.jpg", "Why?"), "sam/1.jpg")
    with pytest.raises(PreselError, match="'conversations' has no turns"):
        Llava665kTasks().task_of({"conversations": "?"}, "coco/1.jpg")


def test_a_mixture_without_images_is_no_pool(tmp_path: Path) -> None:
    with pytest.raises(PreselError, match="the file has no records with an image"):
        source(tmp_path, [record(None, "Write a poem.")]).listed_files.contents()
