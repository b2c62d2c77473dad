"""How the formats of `presel export` write image tokens."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.data.llava import Record
from presel.data.prompts import IMAGE_TOKEN, Turn
from presel.export.formats import (
    content_parts,
    write_hf,
    write_internvl,
    write_llama_factory,
    write_llava,
    write_trl,
)
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


def test_internvl_reads_every_record(tmp_path: Path, mixed: list[Record]) -> None:
    """By what `LazySupervisedDataset` and `preprocess_internvl2_5` ask of one, or take another."""
    write_internvl(tmp_path, mixed, tmp_path, tmp_path)
    for entry in json.loads((tmp_path / "meta.json").read_text()).values():
        assert entry["annotation"].endswith("jsonl")
        assert entry["data_augment"] is False
        assert type(entry["repeat_time"]) is int
        for line in Path(entry["annotation"]).read_text().splitlines():
            record = json.loads(line)
            assert "video" not in record
            asked, answered = record["conversations"][::2], record["conversations"][1::2]
            assert {turn["from"] for turn in asked} == {"human"}
            assert {turn["from"] for turn in answered} == {"gpt"}
            image = record.get("image", [])
            if isinstance(image, str):
                # It would put a second image token into a first question without one.
                assert "<image>" in asked[0]["value"]
            paths = [image] if isinstance(image, str) else image
            assert sum(turn["value"].count("<image>") for turn in asked) == len(paths)
            assert all(Path(entry["root"] + path).is_file() for path in paths)


def test_llava_reads_every_record_and_lists_are_reported(
    tmp_path: Path, mixed: list[Record], caplog: pytest.LogCaptureFixture
) -> None:
    """By what `LazySupervisedDataset` asks of a file: a record has one path as `image`, or no such key."""
    single = [record for record in mixed if len(record.images) < 2]
    write_llava(tmp_path, single, tmp_path, tmp_path)
    assert not caplog.records
    for record in json.loads((tmp_path / "train.json").read_text()):
        assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"]
        tokens = sum(turn["value"].count("<image>") for turn in record["conversations"])
        assert tokens == ("image" in record)
        if "image" in record:
            assert (tmp_path / record["image"]).is_file()
    write_llava(tmp_path, mixed, tmp_path, tmp_path)
    assert "1 records have several images, at which LLaVA's own training code fails" in caplog.text


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
