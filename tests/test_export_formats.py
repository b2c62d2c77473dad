"""How the formats of `presel export` write image tokens."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.data.llava import Record
from presel.data.prompts import IMAGE_TOKEN, Turn
from presel.export.formats import content_parts, write_hf, write_internvl, write_llama_factory, write_trl
from tests.pictures import picture

IMAGE = {"type": "image"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("A bowl of apples.", [text("A bowl of apples.")]),
        ("<image>\nWhat is it?", [IMAGE, text("What is it?")]),
        ("<image>", [IMAGE]),
        ("<image>\n<image>\nWhat differs?", [IMAGE, IMAGE, text("What differs?")]),
        (
            "Is <image> older than <image>?",
            [text("Is "), IMAGE, text(" older than "), IMAGE, text("?")],
        ),
        (
            "First: <image>\nSecond: <image>",
            [text("First: "), IMAGE, text("\nSecond: "), IMAGE],
        ),
    ],
)
def test_image_tokens_become_parts_in_their_order(written: str, parts: list[dict[str, str]]) -> None:
    assert content_parts(written) == parts


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_parts_hold_all_of_the_text(pieces: list[str]) -> None:
    written = IMAGE_TOKEN.join(pieces)
    joined = "".join(part.get("text", IMAGE_TOKEN) for part in content_parts(written))
    assert "".join(joined.split()) == "".join(written.split())


def conversation(*questions: str) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for question in questions:
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes."}]
    return tuple(turns)


@pytest.mark.parametrize(
    ("questions", "written"),
    [
        (["Red?\n<image>", "Round?"], ["<image>\nRed?", "Round?"]),
        (["Ready?", "<image>\nRound?"], ["<image>\nReady?", "Round?"]),
    ],
)
def test_internvl_gets_the_image_in_the_first_question(
    tmp_path: Path, questions: list[str], written: list[str]
) -> None:
    record = Record("1", ("a.png",), "vqa", conversation(*questions))
    write_internvl(tmp_path, [record], tmp_path, tmp_path)
    (line,) = (tmp_path / "train.jsonl").read_text().splitlines()
    assert json.loads(line)["conversations"] == list(conversation(*written))


@pytest.fixture
def mixed(tmp_path: Path) -> list[Record]:
    """Records with one image, two and none, whose files are there."""
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    return [
        Record("one", ("a.png",), "vqa", conversation("Red?\n<image>")),
        Record("two", ("b.png", "a.png"), "vqa", conversation("Is <image> older than <image>?")),
        Record("none", (), "text_only", conversation("Ready?")),
    ]


def test_messages_name_the_images_of_each_record(tmp_path: Path, mixed: list[Record]) -> None:
    write_llama_factory(tmp_path, mixed, Path("images"), tmp_path)
    samples = json.loads((tmp_path / "train.json").read_text())
    assert [one["images"] for one in samples] == [["images/a.png"], ["images/b.png", "images/a.png"], []]
    asked = [one["messages"][0]["content"] for one in samples]
    assert asked == ["<image>\nRed?", "Is <image> older than <image>?", "Ready?"]


def test_internvl_gets_one_image_a_list_or_none(tmp_path: Path, mixed: list[Record]) -> None:
    write_internvl(tmp_path, mixed, tmp_path, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line.get("image") for line in lines] == ["a.png", ["b.png", "a.png"], None]
    asked = [line["conversations"][0]["value"] for line in lines]
    assert asked == ["<image>\nRed?", "Is <image> older than <image>?", "Ready?"]


def test_datasets_embed_the_images_of_each_record(tmp_path: Path, mixed: list[Record]) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "trl").mkdir()
    write_trl(tmp_path / "trl", mixed, tmp_path, tmp_path)
    trl = datasets.Dataset.from_parquet(str(tmp_path / "trl/train.parquet"), cache_dir=str(tmp_path))
    assert [len(row["images"]) for row in trl] == [1, 2, 0]
    parts = [[part["type"] for part in row["messages"][0]["content"]] for row in trl]
    assert [kinds.count("image") for kinds in parts] == [1, 2, 0]
    write_hf(tmp_path / "several", mixed, tmp_path, tmp_path)
    assert [len(row["images"]) for row in datasets.load_from_disk(tmp_path / "several")] == [1, 2, 0]
    write_hf(tmp_path / "single", mixed[:1], tmp_path, tmp_path)
    assert datasets.load_from_disk(tmp_path / "single")[0]["image"].size == (24, 24)
