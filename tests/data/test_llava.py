"""LLaVA-format files: what is read, what is written, and what each bad input says."""

import bz2
import gzip
import json
import lzma
import os
import re
import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from presel.data.errors import RecordError
from presel.data.llava import (
    LlavaFiles,
    Record,
    TaskRule,
    TextOnly,
    image_paths,
    read_training_file,
    write_records,
)
from presel.data.prompts import Turn
from presel.data.sources import LlavaJson, LlavaRecords
from presel.data.validation import LlavaValidation
from presel.errors import PreselError
from presel.evaluation.benchmarks import LlavaBenchmarks
from presel.stages.pool import PoolStage
from presel.storage.store import Store
from tests.helpers import read_records
from tests.pictures import picture

FIELD = TaskRule()
QUESTION = {"from": "human", "value": "<image>\nWhat is it?"}
ANSWER = {"from": "gpt", "value": "A cat."}
MISSING = object()


def fields(**changes: Any) -> dict[str, Any]:
    """A record as a file holds it, with some keys changed or, if `MISSING`, left out."""
    record = {"id": "abc", "image": "coco/1.jpg", "task": "vqa", "conversations": [QUESTION, ANSWER]}
    record |= changes
    return {key: value for key, value in record.items() if value is not MISSING}


def written(folder: Path, content: Any, name: str = "pool.json") -> Path:
    """Writes a file: text and bytes as they are, anything else as JSON."""
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def failure(path: Path, rule: TaskRule = FIELD) -> str:
    """Reads a bad file; returns what the error says after the file's name."""
    with pytest.raises(PreselError) as caught:
        read_records(path, rule)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# Reading.


def test_reads_a_list(tmp_path: Path) -> None:
    path = written(tmp_path, [fields(), fields(id=7, task="ocr", source="left out")])
    turns: tuple[Turn, ...] = (
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
    )
    assert read_records(path, FIELD) == [
        Record("abc", ("coco/1.jpg",), "vqa", turns),
        Record("7", ("coco/1.jpg",), "ocr", turns),
    ]


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.JSONL"])
def test_reads_json_lines(tmp_path: Path, name: str) -> None:
    lines = "\n\n".join(json.dumps(fields(id=number)) for number in range(3))
    records = read_records(written(tmp_path, lines + "\n", name), FIELD)
    assert [record.id for record in records] == ["0", "1", "2"]


def test_reads_what_windows_tools_write(tmp_path: Path) -> None:
    text = json.dumps([fields(task="日本語")], indent=1, ensure_ascii=False).replace("\n", "\r\n")
    assert read_records(written(tmp_path, text.encode("utf-8-sig")), FIELD)[0].task == "日本語"


def test_image_token_may_stand_in_a_later_question(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Ready?"}, {"from": "gpt", "value": "Yes."}, QUESTION, ANSWER]
    assert len(read_records(written(tmp_path, [fields(conversations=turns)]), FIELD)[0].conversations) == 4


def test_file_and_record_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    long_answer = {"from": "gpt", "value": "Ein Kätzchen 🐈. " * 200_000}
    records = [fields(id=number, task=f"task {number % 7}") for number in range(10_000)]
    records.insert(5_000, fields(id="long", conversations=[QUESTION, long_answer]))
    path = written(tmp_path, json.dumps(records, ensure_ascii=False, indent=1))
    read = read_records(path, FIELD)
    assert [(record.id, record.task) for record in read] == [(str(r["id"]), r["task"]) for r in records]
    assert read[5_000].conversations[1]["value"] == long_answer["value"]


# The task.


def test_task_from_another_field(tmp_path: Path) -> None:
    path = written(tmp_path, [fields(task=MISSING, source="gqa")])
    assert read_records(path, TaskRule(field="source"))[0].task == "gqa"


def test_records_without_tasks_are_in_one(tmp_path: Path) -> None:
    path = written(tmp_path, [fields(task=MISSING), fields(id="b", task=3)])
    assert [record.task for record in read_records(path, TaskRule(field=None))] == ["all", "all"]


def test_task_from_the_first_pattern_that_is_found(tmp_path: Path) -> None:
    rule = TaskRule(image_patterns={r"^coco/train": "caption", r"^coco/": "vqa", r"\.png$": "chart"})
    images = ["coco/train/1.png", "coco/val/1.png", "plots/1.png"]
    path = written(tmp_path, [fields(id=n, image=image, task=MISSING) for n, image in enumerate(images)])
    assert [record.task for record in read_records(path, rule)] == ["caption", "vqa", "chart"]


def test_no_pattern_matches(tmp_path: Path) -> None:
    rule = TaskRule(image_patterns={"^gqa/": "gqa"})
    message = failure(written(tmp_path, [fields()]), rule)
    assert message.startswith("record 0 (id 'abc'): 'image' is 'coco/1.jpg', which none of the task patterns")


def test_task_field_that_is_missing_is_named(tmp_path: Path) -> None:
    message = failure(written(tmp_path, [fields()]), TaskRule(field="source"))
    assert message.startswith("record 0 (id 'abc'): 'source' is missing; ")


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ({}, "there are none; "),
        ({"coco/(": "vqa"}, r"'coco/\(' is not a regular expression \(.*; "),
        ({"coco": " "}, "the task of 'coco' is blank; "),
    ],
)
def test_task_rule_is_checked_before_any_file(patterns: dict[str, str], said: str) -> None:
    with pytest.raises(PreselError, match=f"^task patterns: {said}"):
        TaskRule(image_patterns=patterns)


# Files that are no list of records.


def test_missing_file(tmp_path: Path) -> None:
    assert failure(tmp_path / "pool.json").startswith("there is no such file; ")


def test_file_in_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, [fields()]) / "pool.json"
    assert failure(path).startswith("the file cannot be read (Not a directory); ")


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    assert failure(tmp_path).startswith("this is a folder; ")


def test_a_pipe_in_place_of_the_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pool.json")
    assert failure(tmp_path / "pool.json").startswith("this is a pipe, socket or device; ")
    assert failure(Path("/dev/zero")).startswith("this is a pipe, socket or device; ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"[]"), "the file is packed by gzip; unpack it"),
        (bz2.compress(b"[]"), "the file is packed by bzip2; "),
        (lzma.compress(b"[]"), "the file is packed by xz; "),
        (b"\x28\xb5\x2f\xfd\x04\x58", "the file is packed by zstd; "),
        (b"PK\x03\x04\x14", "the file is packed by zip, "),
        (b"<!DOCTYPE html>", "the file is a web page or XML; "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "the file is a Git LFS pointer; "),
    ],
)
@pytest.mark.parametrize("name", ["pool.json", "pool.jsonl", "pool.json.gz"])
def test_packed_files_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    assert failure(written(tmp_path, content, name)).startswith(said)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_in_json_lines_is_named(tmp_path: Path, indent: int | None) -> None:
    path = written(tmp_path, json.dumps([fields(), fields(id="b")], indent=indent), "pool.jsonl")
    assert failure(path) == "line 1 begins a JSON list; rename the file to end in .json"
    found: list[RecordError] = []
    LlavaFiles(path, path.parent, FIELD).contents(found.append)
    assert len(found) == 2, "one for the list, one for a file without records"
    path = written(tmp_path, json.dumps(fields(), indent=1), "pretty.jsonl")
    assert failure(path).startswith("line 1 is only the beginning of a record; ")


@pytest.mark.parametrize("name", ["pool.json", "pool.jsonl"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_not_utf8(tmp_path: Path, name: str, encoding: str) -> None:
    record = json.dumps(fields(task="prüfen"), ensure_ascii=False)
    assert failure(written(tmp_path, record.encode(encoding), name)).startswith("the file is not UTF-8; ")


GOOD = json.dumps(fields())


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[\n" + GOOD + ",\n" + GOOD.replace("abc", "b")[:30], "line 3 column"),
        ("[\n" + GOOD, f"line 2 column {len(GOOD) + 1} "),
        ("[\n" + GOOD + ",", f"line 2 column {len(GOOD) + 2} "),
        ("[\n" + GOOD + ",\n]", "line 3 column 1 "),
        ("[\n  " + GOOD + "\n  " + GOOD + "]", "line 3 column 3 "),
        ("[" + GOOD + "] [", f"line 1 column {len(GOOD) + 4} "),
        ('[{"id": tru}]', "line 1 column 9 "),
        ("[", "line 1 column 2 "),
        ('[{"id": ' + "9" * 5000 + "}]", "line 1 column 2 "),
        ("[" * 200_000, "line 1 column 2 "),
    ],
)
def test_json_that_breaks_off(tmp_path: Path, text: str, place: str) -> None:
    assert f"the JSON is truncated or malformed at {place}" in failure(written(tmp_path, text))


def test_json_that_breaks_off_far_into_the_file(tmp_path: Path) -> None:
    lines = [json.dumps(fields(id=number), ensure_ascii=False) for number in range(20_000)]
    text = "[" + ",\n".join(lines)
    place = f"line {len(lines)} column {len(lines[-1]) - 10} (Unterminated string"
    assert place in failure(written(tmp_path, text[:-4]))
    on_one_line = "[" + ",".join(lines)
    assert f"line 1 column {len(on_one_line) + 1} " in failure(written(tmp_path, on_one_line))


@pytest.mark.parametrize(
    ("line", "column"),
    [('{"id": ', "7"), (GOOD + ",", str(len(GOOD) + 1)), ('{"id": ' + "[" * 200_000, "1")],
)
def test_json_lines_that_break_off(tmp_path: Path, line: str, column: str) -> None:
    message = failure(written(tmp_path, f"{GOOD}\n\n{line}", "pool.jsonl"))
    assert f"line 3 column {column} " in message


@pytest.mark.parametrize("text", ['{"a": []}', '"text"', "12", GOOD + "\n" + GOOD])
def test_top_level_is_not_a_list(tmp_path: Path, text: str) -> None:
    assert failure(written(tmp_path, text)).startswith("the top level is not a list; ")


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty_file(tmp_path: Path, text: str) -> None:
    assert failure(written(tmp_path, text)).startswith("the file is empty; ")


@pytest.mark.parametrize(("text", "name"), [("[]", "p.json"), (" [\n] ", "p.json"), ("\n", "p.jsonl")])
def test_no_records(tmp_path: Path, text: str, name: str) -> None:
    assert failure(written(tmp_path, text, name)).startswith("the file has no records; ")


# Records that cannot be used. The second is the bad one, so that the position is tested too.


@pytest.mark.parametrize(
    ("record", "kind"),
    [([1], "a list"), ("x", "text"), (1.5, "a number"), (None, "null"), (True, "true")],
)
def test_record_is_not_an_object(tmp_path: Path, record: Any, kind: str) -> None:
    path = written(tmp_path, [fields(), record])
    assert failure(path).startswith(f"record 1: the record is {kind}, not an object; ")


@pytest.mark.parametrize(
    ("identifier", "said"),
    [
        (MISSING, "record 1: 'id' is missing; "),
        (None, "record 1: 'id' is missing; "),
        (" ", "record 1 (id ' '): 'id' is blank; "),
        (True, "record 1 (id True): 'id' is true, not text; "),
        (1.5, "record 1 (id 1.5): 'id' is a number, not text; "),
        ({}, "record 1 (id {}): 'id' is an object, not text; "),
    ],
)
def test_record_without_id(tmp_path: Path, identifier: Any, said: str) -> None:
    assert failure(written(tmp_path, [fields(), fields(id=identifier)])).startswith(said)


def test_a_key_that_stands_twice_is_reported(tmp_path: Path) -> None:
    twice = GOOD.replace('"image"', '"image": "b.jpg", "image"')
    nested = json.dumps(fields(id="b", meta={"id": 1, "note": 'an "image"'}))
    told = "record 1 (id 'abc'): the record has 'image' more than once; "
    assert failure(written(tmp_path, f"[{nested}, {twice}]")).startswith(told)
    assert failure(written(tmp_path, f"{nested}\n{twice}\n", "pool.jsonl")).startswith(told)


@pytest.mark.parametrize(
    ("once", "twice", "said"),
    [
        ('"value": "A cat."', '"value": "A dog.", "value": "A cat."', "'conversations' entry 1 has 'value'"),
        ('"from": "human"', '"from": "gpt", "from" : "human"', "'conversations' entry 0 has 'from'"),
        ('"id": "abc"', '"id": "abc", "\\u0069d": "b"', "the record has 'id'"),
        ('"task"', '"meta": {"size": [1, {"w": 1, "w": 2}]}, "task"', "'meta' 'size' entry 1 has 'w'"),
    ],
)
def test_a_key_that_stands_twice_anywhere_in_a_record_is_reported(
    tmp_path: Path, once: str, twice: str, said: str
) -> None:
    assert once in GOOD
    record = GOOD.replace(once, twice)
    told = f"record 1 (id '{'b' if 'u0069' in twice else 'abc'}'): {said} more than once; leave it once"
    first = json.dumps(fields(id="first"))
    assert failure(written(tmp_path, f"[{first}, {record}]")) == told
    assert failure(written(tmp_path, f"{first}\n{record}\n", "pool.jsonl")) == told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": MISSING, "images": ["1.jpg"]}, "'images' (a list) in place of 'image' ("),
        ({"image": "", "images": "1.jpg"}, "'images' (text) in place of 'image' ("),
        ({"conversations": MISSING, "messages": [{}]}, "'messages' (a list) in place of 'conversations' ("),
        (
            {
                "id": MISSING,
                "image": MISSING,
                "images": ["1.jpg"],
                "conversations": MISSING,
                "messages": [{}],
            },
            "'images' (a list) in place of 'image' and 'messages' (a list) in place of 'conversations' (",
        ),
        ({"conversations": MISSING, "query": "<image>"}, "'query' (text) in place of 'conversations' ("),
        ({"image": MISSING, "video": "1.mp4"}, "'video' (text) in place of 'image' ("),
        ({"image": MISSING, "file_name": "1.jpg"}, "'file_name' (text) in place of 'image' ("),
        ({"image": MISSING, "Image": "1.jpg"}, "'Image' (text) in place of 'image' ("),
    ],
)
@pytest.mark.parametrize("text_only", ["refuse", "drop", "drop_all"])
def test_other_programs_keys_are_named(
    tmp_path: Path, changes: dict[str, Any], said: str, text_only: TextOnly
) -> None:
    path = written(tmp_path, [fields(), fields(**changes)])
    with pytest.raises(PreselError) as caught:
        LlavaFiles(path, path.parent, FIELD, text_only=text_only).contents()
    assert f": the record has {said}LLaMA-Factory's" in str(caught.value)


NO_IMAGE = [{"image": MISSING}, {"image": None}, {"image": ""}, {"image": " "}, {"image": []}]
CHAT = [{"from": "human", "value": "Write a poem."}, {"from": "gpt", "value": "An <image> in words."}]


@pytest.mark.parametrize("changes", [*NO_IMAGE, {"image": MISSING, "images": []}])
@pytest.mark.parametrize("text_only", ["drop", "drop_all"])
def test_text_only_records_are_dropped_and_counted(
    tmp_path: Path, changes: dict[str, Any], text_only: TextOnly
) -> None:
    path = written(tmp_path, [fields(**changes, conversations=CHAT), fields(id="b")])
    records, dropped = LlavaFiles(path, path.parent, FIELD, text_only=text_only).contents()
    assert [record.id for record in records] == ["b"]
    assert dropped == 1


def test_a_run_says_how_many_records_it_drops(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "images/coco/1.jpg")
    path = written(tmp_path, [fields(), *[fields(id=n, image="", conversations=CHAT) for n in range(3)]])
    stage = PoolStage(
        source=LlavaJson(annotations=path, images=tmp_path / "images", text_only="drop"), workers=0
    )
    assert len(store.load(stage)) == 1
    assert store.manifest(stage)["measured"]["text_only_left_out"] == 3
    assert "records left out, since they have no image: 3" in capsys.readouterr().out


@pytest.mark.parametrize("changes", NO_IMAGE)
@pytest.mark.parametrize(
    "token", ["<image>", "<Image>", "<image_1>", "<image 1>", "<|image|>", "<|image_1|>"]
)
def test_a_question_about_an_image_is_no_text_alone(
    tmp_path: Path, changes: dict[str, Any], token: str
) -> None:
    turns = [*CHAT, {"from": "human", "value": f"And {token}?"}, ANSWER]
    path = written(tmp_path, [fields(), fields(id="b", **changes, conversations=turns)])
    with pytest.raises(PreselError) as caught:
        LlavaFiles(path, path.parent, FIELD, text_only="drop", group="evaluation").contents()
    assert f"record 1 (id 'b'): a question contains {token}, and 'image' is missing; " in str(caught.value)
    assert "evaluation.text_only=drop_all" in str(caught.value)
    assert LlavaFiles(path, path.parent, FIELD, text_only="drop_all").contents().text_only == 1


TWO = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "The first."}]


def test_a_record_may_have_several_images(tmp_path: Path) -> None:
    apart = [QUESTION, ANSWER, QUESTION, ANSWER]
    content = [
        fields(id="one", image=["b.jpg"]),
        fields(id="two", image=["b.jpg", "a.jpg"], conversations=TWO),
        fields(id="apart", image=["a.jpg", "a.jpg"], conversations=apart),
    ]
    files = LlavaFiles(written(tmp_path, content), tmp_path, TaskRule(image_patterns={"b": "b", "": "other"}))
    images = [("b.jpg",), ("b.jpg", "a.jpg"), ("a.jpg", "a.jpg")]
    assert [record.images for record in files.records()] == images
    assert [item.images for item in files.listing().items] == images
    # The first image decides.
    assert [item.task for item in files.listing().items] == ["b", "b", "other"]


@pytest.mark.parametrize(
    "turns", [[QUESTION, ANSWER], [TWO[0], ANSWER, QUESTION, ANSWER], [TWO[0], QUESTION | {"from": "gpt"}]]
)
def test_every_image_has_its_place_in_a_question(tmp_path: Path, turns: Any) -> None:
    message = failure(written(tmp_path, in_second({"image": ["a.jpg", "b.jpg"], "conversations": turns})))
    assert re.search(r"has [13] <image>; put one into a question for each of the 2 images", message)


def test_text_only_records_are_kept_on_request(tmp_path: Path) -> None:
    chat = [CHAT[0], ANSWER]
    content = [fields(id="a", image=MISSING, conversations=chat), fields(id="b")]
    content += [fields(id="markup", image=None, conversations=CHAT)]
    content += [fields(id="asked", image=None, conversations=[QUESTION, ANSWER])]
    path = written(tmp_path, content)
    # Positions, which count every record.
    files = LlavaFiles(path, path.parent, FIELD, numbered=True, text_only="keep")
    assert [(one.id, one.images, one.task) for one in files.records()] == [
        ("0", (), "text_only"),
        ("1", ("coco/1.jpg",), "vqa"),
    ]
    listing = files.listing()
    assert [item.id for item in listing.items] == ["1"]
    assert (listing.kept, listing.text_only) == (["0"], 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conversations": [CHAT[0]]}, "'conversations' has no answer at its end; "),
        ({"id": "abc"}, "'id' is already that of record 0; "),
        ({"images": ["a.jpg"]}, r"the record has 'images' \(a list\) in place of 'image'"),
    ],
)
def test_text_only_records_are_checked_too(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    bad = fields(**({"id": "b", "image": MISSING, "conversations": [CHAT[0], ANSWER]} | changes))
    path = written(tmp_path, [fields(), bad])
    with pytest.raises(PreselError, match=f"record 1 .*: {said}"):
        LlavaFiles(path, path.parent, FIELD, text_only="keep").contents()


def test_a_file_of_text_alone_is_no_pool(tmp_path: Path) -> None:
    path = written(tmp_path, [fields(image=MISSING, conversations=[CHAT[0], ANSWER])])
    with pytest.raises(PreselError, match="the file has no records with an image"):
        LlavaFiles(path, path.parent, FIELD, text_only="keep").contents()


@pytest.mark.parametrize("kind", [LlavaBenchmarks, LlavaValidation])
def test_only_a_pool_keeps_text(tmp_path: Path, kind: type[LlavaRecords]) -> None:
    with pytest.raises(ValidationError, match="Input should be 'refuse', 'drop' or 'drop_all'"):
        kind(annotations=tmp_path / "a.json", images=tmp_path, text_only="keep")


def test_the_paths_that_a_digest_of_the_files_covers(tmp_path: Path) -> None:
    content = [fields(), fields(image=["a [1].jpg", 'b "2".jpg', 7]), fields(image=[]), fields(image=MISSING)]
    content += [fields(image=["c.jpg", ["d.jpg"]], conversations=[turn("human", '"image": ["no.jpg"]')])]
    for indent in (None, 1):
        paths = image_paths(written(tmp_path, json.dumps(content, indent=indent)))
        assert sorted(paths) == ["a [1].jpg", 'b "2".jpg', "coco/1.jpg"]


@pytest.mark.parametrize(("first", "second"), [("1", "1"), (1, "1"), (1, 1)])
def test_duplicate_ids(tmp_path: Path, first: Any, second: Any) -> None:
    path = written(tmp_path, [fields(id="a"), fields(id=first), fields(id="b"), fields(id=second)])
    assert failure(path).startswith(f"record 3 (id {second!r}): 'id' is already that of record 1; ")


def test_an_image_in_the_place_of_its_path_is_not_carried_on(tmp_path: Path) -> None:
    path = written(
        tmp_path, [fields(image="data:image/png;base64," + "A" * 10_000), fields(image="../a.jpg")]
    )
    found: list[RecordError] = []
    LlavaFiles(path, path.parent, FIELD).contents(found.append)
    assert [error.image for error in found] == [None, "../a.jpg"]
    assert all(len(str(error)) < 400 + len(str(path)) for error in found)


def test_the_remedy_is_a_setting_of_the_files_own_group(tmp_path: Path) -> None:
    path = written(tmp_path, [fields(), fields()])
    with pytest.raises(PreselError, match=r"their positions \(evaluation\.ids=position\)"):
        LlavaBenchmarks(annotations=path, images=tmp_path).listed_files.records()


def test_only_benchmarks_read_further_references(tmp_path: Path) -> None:
    path = written(tmp_path, [fields(references=["A cat.", "A pet."]), fields(id="b")])
    both = [LlavaBenchmarks(annotations=path, images=tmp_path), LlavaJson(annotations=path, images=tmp_path)]
    found = [[record.references for record in source.listed_files.records()] for source in both]
    assert found == [[("A cat.", "A pet."), ()], [(), ()]]
    write_records(tmp_path / "out.json", both[0].listed_files.records())
    assert "references" not in (tmp_path / "out.json").read_text()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"references": "A cat."}, "'references' is 'A cat.'; write a list of reference answers"),
        ({"references": []}, "'references' is []; write"),
        ({"references": ["A cat.", " "]}, "'references' is ['A cat.', ' ']; write"),
        (
            {"references": ["A cat."], "conversations": [QUESTION, ANSWER, CHAT[0], ANSWER]},
            "'references' is given for 2 questions; write a record for each of them",
        ),
    ],
)
def test_references_that_cannot_be_scored_against(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    path = written(tmp_path, [fields(), fields(id="b", **changes)])
    with pytest.raises(PreselError) as caught:
        LlavaBenchmarks(annotations=path, images=tmp_path).listed_files.records()
    assert f"{path}: record 1 (id 'b'): {fault}" in str(caught.value)


def in_second(changes: dict[str, Any]) -> list[dict[str, Any]]:
    """A good record, and one with changes."""
    return [fields(), fields(id="bad", **changes)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": MISSING}, r"'image' is missing; .*skip text-only records \(pool.text_only=drop_all\)"),
        ({"image": None}, "'image' is missing; .*skip text-only records"),
        (
            {"image": MISSING, "conversations": [{"from": "human", "value": "What?"}, ANSWER]},
            r"'image' is missing; .*\(pool.text_only=drop\)",
        ),
        ({"image": ""}, "'image' is blank; "),
        ({"image": []}, "'image' is missing; name one image file"),
        ({"image": {"path": "a.jpg"}}, "'image' is an object, not text; name one image file"),
        ({"image": ["a.jpg", 7]}, "'image' entry 1 is a number, not text; name an image file in each place"),
        ({"image": ["a.jpg", ["b.jpg"]]}, "'image' entry 1 is a list, not text; "),
        ({"image": [" ", "b.jpg"]}, "'image' entry 0 is blank; "),
        ({"image": ["a.jpg", "../b.jpg"]}, "'image' entry 1 is '../b.jpg', which may leave the image folder"),
        (
            {"image": ["a.jpg", "b.jpg"]},
            "'conversations' has 1 <image>; put one into a question for each of the 2 images under 'image'",
        ),
        ({"image": "/etc/passwd"}, "'image' is '/etc/passwd', an absolute path; "),
        ({"image": "C:/a.jpg"}, "'image' is 'C:/a.jpg', an absolute path; "),
        ({"image": "../a.jpg"}, "'image' is '../a.jpg', which may leave the image folder"),
        ({"image": "a/../../b.jpg"}, "'image' is 'a/../../b.jpg', which may leave the image folder"),
        ({"image": "a\\b.jpg"}, "'image' is .*with a backslash, .*forward slashes"),
        (
            {"image": "a\0.jpg"},
            r"'image' is 'a\\x00.jpg', with a line break, tab or other control character; ",
        ),
        ({"image": "a.jpg\n"}, r"'image' is 'a.jpg\\n', with a line break"),
        ({"task": "vqa\x1b[2J"}, r"'task' is 'vqa\\x1b\[2J', with a line break"),
        (
            {"image": "https://example.org/a.jpg"},
            "'image' is 'https://.*', an address; save the images as files",
        ),
        ({"image": "S3://bucket/a.jpg"}, "'image' is 'S3://bucket/a.jpg', an address; "),
        ({"image": "file:/home/a.jpg"}, "'image' is 'file:/home/a.jpg', an address; "),
        ({"image": "data:image/png;base64," + "A" * 10_000}, r"'image' is 'data:.{1,120}', an address; "),
        ({"image": "iVBOR" + "A" * 10_000}, "'image' is 'iVBOR.{1,120}', 10,005 characters long, too long"),
        ({"image": "a\ud800.jpg"}, "'image' has half of a surrogate pair"),
        ({"task": MISSING}, "'task' is missing; .*give patterns"),
        ({"task": " \n"}, "'task' is blank; "),
        ({"task": 3}, "'task' is a number, not text; "),
    ],
)
def test_image_and_task(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    message = failure(written(tmp_path, in_second(changes)))
    assert re.match(rf"record 1 \(id 'bad'\): {said}", message), message


NESTED: Any = []
for _ in range(900):
    NESTED = [NESTED]


def turn(role: Any, value: Any) -> dict[str, Any]:
    """A turn, as a file holds it."""
    return {"from": role, "value": value}


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (MISSING, "is missing; "),
        ("What is it?", "is text; write a list"),
        ({"human": "What is it?"}, "is an object; write a list"),
        ([], "is empty; "),
        (["What is it?", ANSWER], "turn 0 is text; write an object"),
        ([turn("user", "<image>"), ANSWER], "turn 0 has the unknown role 'user'; .*'human'.*'gpt'"),
        ([QUESTION, turn("assistant", "A cat.")], "turn 1 has the unknown role 'assistant'; "),
        ([QUESTION, {"value": "A cat."}], r"turn 1 has no 'from', but \['value'\]; .*'from': 'human'"),
        ([turn([], "<image>"), ANSWER], r"turn 0 has the unknown role \[\]; "),
        ([turn("u" * 10_000, "<image>"), ANSWER], "turn 0 has the unknown role '.{1,120}'; "),
        ([turn(NESTED, "<image>"), ANSWER], "turn 0 has the unknown role .{1,120}; "),
        ([ANSWER, QUESTION], "turn 0 is from 'gpt' instead of 'human'; "),
        ([QUESTION, QUESTION], "turn 1 is from 'human' instead of 'gpt'; "),
        ([QUESTION, ANSWER, ANSWER], "turn 2 is from 'gpt' instead of 'human'; "),
        ([{"from": "human"}, ANSWER], "turn 0 'value' is missing; write the question there"),
        ([turn("human", ["<image>"]), ANSWER], "turn 0 'value' is a list, not text; "),
        ([turn("human", " "), ANSWER], "turn 0 'value' is blank; "),
        ([QUESTION, turn("gpt", "\ud83d")], "turn 1 'value' has half of a surrogate pair"),
        ([QUESTION], "has no answer at its end; "),
        ([QUESTION, ANSWER, turn("human", "Sure?")], "has no answer at its end; "),
        ([QUESTION, turn("gpt", "")], "turn 1 'value' is blank; write the answer there"),
        ([QUESTION, turn("gpt", " \n")], "turn 1 'value' is blank; write the answer there"),
        ([QUESTION, turn("gpt", None)], "turn 1 'value' is missing; write the answer there"),
        ([turn("human", "What is it?"), ANSWER], "has no <image> in any question; put <image> once"),
        ([turn("human", "What is it?"), turn("gpt", "<image>")], "has no <image> in any question; "),
        (
            [turn("human", "<image> <image>"), ANSWER],
            "has 2 <image>; put <image> once .*, or list an image for each under 'image'",
        ),
        ([QUESTION, ANSWER, QUESTION, ANSWER], "has 2 <image>; "),
        ([QUESTION, turn("gpt", "See <image>.")], "has 2 <image>; "),
    ],
)
def test_conversations(tmp_path: Path, turns: Any, said: str) -> None:
    message = failure(written(tmp_path, in_second({"conversations": turns})))
    assert re.match(rf"record 1 \(id 'bad'\): 'conversations' {said}", message), message


# Writing.

text = st.text(min_size=1).filter(lambda value: bool(value.strip()) and "<image>" not in value)
readable = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])
name = st.text(readable, min_size=1).filter(lambda value: bool(value.strip()))
segment = name.filter(lambda value: value != ".." and not set("/\\:") & set(value) and len(value) < 99)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Turn, ...]:
    """Rounds of question and answer, the image token in one question."""
    rounds = draw(st.lists(st.tuples(text, text), min_size=1, max_size=4))
    with_image = draw(st.integers(0, len(rounds) - 1))
    turns: list[Turn] = []
    for position, (question, answer) in enumerate(rounds):
        asked = f"<image>\n{question}" if position == with_image else question
        turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return tuple(turns)


images = st.lists(segment, min_size=1, max_size=3).map("/".join)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A record with an image, several or none."""
    turns, named = draw(conversations()), tuple(draw(st.lists(images, max_size=3)))
    value = "".join(turn["value"] for turn in turns).replace("<image>", "", 1)
    assume("image" not in value.lower())
    shown = [turn["value"].replace("<image>", "<image>" * len(named)) or "?" for turn in turns]
    turns = tuple({"from": turn["from"], "value": text} for turn, text in zip(turns, shown, strict=True))
    return Record(draw(name), named, draw(name) if named else "text_only", turns)


record_lists = st.lists(records(), unique_by=lambda record: record.id)


# No time limits: a busy machine is no fault of the code.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(record_lists, st.sampled_from(["training.json", "training.jsonl"]))
def test_what_is_written_is_read_back(records: list[Record], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_records(path, iter(records))
        assert read_training_file(path) == records
        assert list(Path(folder).iterdir()) == [path]


def test_written_file_is_plain_llava_format(tmp_path: Path) -> None:
    content = [
        fields(id="7", task="日本語"),
        fields(id="8", image=["a.jpg", "b.jpg"], conversations=TWO),
        fields(id="9", image=MISSING, task="text_only", conversations=[CHAT[0], ANSWER]),
    ]
    path = written(tmp_path, content)
    write_records(path, LlavaFiles(path, tmp_path, FIELD, text_only="keep").records())
    assert json.loads(path.read_text(encoding="utf-8")) == content
    assert "日本語" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["training.json", "training.jsonl"])
def test_failure_while_writing_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, "old", name)

    def records() -> Any:
        yield Record("a", ("a.jpg",), "vqa", ())
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_records(path, records())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_space_left(tmp_path: Path) -> None:
    path = written(tmp_path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(PreselError, match=r"cannot be written .*; check the folder and the space left"):
            write_records(path, [Record("a", ("a.jpg",), "vqa" * 100_000, ())])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", ["file", "file/folder"])
def test_folder_that_cannot_be_made(tmp_path: Path, folder: str) -> None:
    written(tmp_path, "in the way", "file")
    path = tmp_path / folder / "training.json"
    with pytest.raises(PreselError, match=f"^{re.escape(str(path))}: the file cannot be written"):
        write_records(path, [])
