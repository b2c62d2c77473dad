"""Label Studio: tasks go out, exports come back; nobody annotates an image twice."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from presel.data.llava import LlavaFiles
from presel.errors import Paused, PreselError
from presel.instructions.label_studio import LabelStudio
from presel.instructions.provider import InstructionRequest
from presel.storage.files import read_json, sha256, write_json
from presel.storage.stage import identity
from tests.helpers import OWN_STORE, Program, on_folder, stage_lines
from tests.waiting import about_two, jobs, paused, wanted

Task = dict[str, Any]


@pytest.fixture
def people(answers: Path) -> LabelStudio:
    return LabelStudio(answers=answers)


def written(number: int = 7, *, skipped: bool = False, **areas: list[str]) -> Task:
    """An annotation as Label Studio 1.23.2 exports it, less what says who made it when, and out of what."""
    results = [
        {
            "value": {"text": texts},
            "id": f"T4NV5j{name}",
            "from_name": name,
            "to_name": "image",
            "type": "textarea",
            "origin": "manual",
        }
        for name, texts in areas.items()
    ]
    return {
        "id": number,
        "completed_by": 1,
        "result": results,
        "was_cancelled": skipped,
        "ground_truth": False,
        "created_at": "2026-11-25T09:34:54.787611Z",
        "updated_at": "2026-11-25T09:34:54.787639Z",
        "lead_time": 7.365,
        "prediction": {},
        "result_count": len(results),
    }


def annotated(name: str) -> Task:
    return written(question=[f"What is on {name}?"], answer=[f"A thing on {name}."])


SKIPPED = written(8, skipped=True)


def export(job: Path, changes: Mapping[str, list[Task]] | None = None) -> list[Task]:
    """Plays the annotators, who do their tasks from the last to the first."""
    exported = []
    for number, task in enumerate(reversed(read_json(job / "tasks.json")), start=1):
        name = task["data"]["uid"]
        made = (changes or {}).get(name, [annotated(name)])
        skipped = sum(annotation["was_cancelled"] for annotation in made)
        exported.append(
            {
                "id": number,
                "annotations": made,
                "file_upload": "71301db3-tasks.json",
                "drafts": [],
                "predictions": [],
                "data": task["data"],
                "meta": {},
                "allow_skip": True,
                "inner_id": number,
                "total_annotations": len(made) - skipped,
                "cancelled_annotations": skipped,
                "project": 1,
            }
        )
    write_json(job / "export.json", exported)
    return exported


def test_tasks_and_the_interface_go_together(people: LabelStudio, files: LlavaFiles, answers: Path) -> None:
    told = paused(people, wanted(files, 0, 1), files)
    (job,) = jobs(answers)
    assert f"2 images wait for annotators in {job}" in told
    for words in (
        "import tasks.json",
        f"config.xml as its labeling interface and access to the images in {files.images}, annotate",
        "export as JSON to export.json",
        "same command again",
    ):
        assert words in told
    (data, _) = [task["data"] for task in read_json(job / "tasks.json")]
    assert data["uid"] == "0000"
    assert data["image"] == "/data/local-files/?d=images/0000.png"
    assert data["task"] == "vqa"
    interface = ElementTree.parse(job / "config.xml").getroot()
    assert {area.get("name") for area in interface.iter("TextArea")} == {"question", "answer"}
    assert [image.get("value") for image in interface.iter("Image")] == ["$image"]
    assert all(area.get("toName") == "image" for area in interface.iter("TextArea"))


def test_an_image_is_shown_by_the_url_one_says(files: LlavaFiles, answers: Path) -> None:
    (files.images / "a folder").mkdir()
    file = shutil.copy(files.images / "0001.png", files.images / "a folder" / "b&c.png")
    images = [InstructionRequest("x", "a folder/b&c.png", "vqa", sha256(file))]
    told = paused(LabelStudio(answers=answers), images, files)
    # The tasks are written anew as long as nothing came back.
    assert paused(LabelStudio(answers=answers, image_url="https://host/{path}"), images, files) == told
    (job,) = jobs(answers)
    assert read_json(job / "tasks.json")[0]["data"]["image"] == "https://host/a%20folder/b%26c.png"
    assert "access to the images" not in paused(LabelStudio(answers=answers, image_url=None), images, files)
    assert read_json(job / "tasks.json")[0]["data"]["image"].startswith("data:image/png;base64,iVBOR")
    shutil.copy(files.images / "0002.png", file)
    with pytest.raises(PreselError, match=r"b&c\.png: changed since the pool was checked"):
        LabelStudio(answers=answers, image_url=None).reveal(images, files)
    with pytest.raises(ValueError, match=r"image_url lacks \{path\}"):
        LabelStudio(answers=answers, image_url="https://host/")


def draft(name: str, *texts: str) -> dict[str, Any]:
    """A LLaVA-format record of questions and answers in turn."""
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": name, "image": "not read", "conversations": turns}


def test_annotators_find_drafts_of_the_images_they_are_asked_about(
    files: LlavaFiles, answers: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="presel")
    drafts = tmp_path / "drafts.json"
    texts = ("What is it?\n<image>", "A box.", "Where?")
    write_json(drafts, [draft("0000", *texts), draft("0001", "How many?"), draft("0009", "Whose?", "Mine.")])
    people = LabelStudio(answers=answers, drafts=drafts)
    people.check(files, ["vqa"])
    assert not caplog.records, "all ids are the pool's"
    images = wanted(files, 0, 1, 2)
    paused(people, images, files)
    assert "drafts for 2 of 3 images" in caplog.text
    (job,) = jobs(answers)
    assert "Mine." not in (job / "tasks.json").read_text()
    interface = ElementTree.parse(job / "config.xml").getroot()
    areas = {area.get("name") for area in interface.iter("TextArea")}
    found: list[dict[str, list[str]]] = []
    for task in read_json(job / "tasks.json"):
        filled = [one for prediction in task.get("predictions", []) for one in prediction["result"]]
        assert {(one["type"], one["to_name"]) for one in filled} <= {("textarea", "image")}
        found.append({one["from_name"]: one["value"]["text"] for one in filled})
        assert found[-1].keys() <= areas
    expected = [
        {"question": ["What is it?", "Where?"], "answer": ["A box."]},
        {"question": ["How many?"]},
        {},
    ]
    assert found == expected
    # What people make of them comes back as what they write themselves does.
    changed = written(question=["What is it?", "Where?"], answer=["A crate.", "Left."])
    changed["result"][1]["origin"] = "prediction-changed"
    export(job, {"0000": [changed]})
    records, _ = people.reveal(images, files)
    assert [turn["value"] for turn in records[0].conversations][1::2] == ["A crate.", "Left."]
    assert identity(people) == identity(LabelStudio(answers=answers))


def test_drafts_of_unknown_images_are_named(
    files: LlavaFiles, answers: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known, *unknown = (draft(name, "What?") for name in ("0000", "0000.png", "elsewhere"))
    write_json(tmp_path / "drafts.json", [known, *unknown])
    LabelStudio(answers=answers, drafts=tmp_path / "drafts.json").check(files, ["vqa"])
    assert "has 2 of its 3 ids, which are left out: '0000.png', 'elsewhere'" in caplog.text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([draft("elsewhere", "What?")], r"no record of the pool has one of its 1 ids; name the drafts"),
        (
            [draft("0000", "What?"), draft("0000", "Who?")],
            r"record 1: it is the second draft of image '0000'",
        ),
        (["What?"], r"record 0: it is text, not an object; write 'id' and 'conversations'"),
        ([{"id": "0000"}], r"record 0: 'conversations' is missing; give the record a question"),
        ([draft("0000", "")], r"record 0: 'conversations' turn 0 'value' is blank; write the question there"),
        ([draft(" ", "What?")], r"record 0: 'id' is blank; name the image that the draft is about"),
    ],
)
def test_drafts_that_cannot_be_used_are_refused_before_anybody_is_asked(
    files: LlavaFiles, answers: Path, tmp_path: Path, content: list[Any], sentence: str
) -> None:
    write_json(tmp_path / "drafts.json", content)
    with pytest.raises(PreselError, match=sentence):
        LabelStudio(answers=answers, drafts=tmp_path / "drafts.json").check(files, ["vqa"])


def test_the_images_of_a_record_are_shown_together(files: LlavaFiles, answers: Path) -> None:
    images = [about_two(files), *wanted(files, 2)]
    paused(LabelStudio(answers=answers), images, files)
    (job,) = jobs(answers)
    shown = {task["data"]["uid"]: task["data"]["images"] for task in read_json(job / "tasks.json")}
    assert shown == {
        "both": ["/data/local-files/?d=images/0001.png", "/data/local-files/?d=images/0000.png"],
        "0002": ["/data/local-files/?d=images/0002.png"],
    }
    interface = ElementTree.parse(job / "config.xml").getroot()
    assert [image.get("valueList") for image in interface.iter("Image")] == ["$images"]
    within = LabelStudio(answers=answers, image_url=None)
    paused(within, images, files)
    assert all(url.startswith("data:image/png") for url in read_json(job / "tasks.json")[0]["data"]["images"])
    export(job)
    records, _ = within.reveal(images, files)
    assert records[0].images == ("0001.png", "0000.png")
    assert records[0].conversations[0]["value"] == "<image>\n<image>\nWhat is on both?"
    assert records[1].conversations[0]["value"] == "<image>\nWhat is on 0002?"


def test_annotations_come_back_and_are_never_asked_for_again(
    people: LabelStudio, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, 0, 1, 2)
    paused(people, images, files)
    (job,) = jobs(answers)
    dialog = written(10, question=["What is it? ", "Where?"], answer=["A box.\nOr so.", "On the left."])
    made = [
        written(11, question=["Later?"], answer=["Never read."]),
        dialog,
        written(9, answer=["half"]),
        SKIPPED,
    ]
    # Whatever order the database gives them in.
    for several in (made, made[::-1]):
        export(job, {"0001": several})
        records, unanswered = people.reveal(images, files)
        assert not unanswered
        assert [record.id for record in records] == ["0000", "0001", "0002"]
        assert [turn["value"] for turn in records[0].conversations] == [
            "<image>\nWhat is on 0000?",
            "A thing on 0000.",
        ]
        assert [turn["value"] for turn in records[1].conversations] == [
            "<image>\nWhat is it?",
            "A box.\nOr so.",
            "Where?",
            "On the left.",
        ]
    kept = [json.loads(line) for line in (answers / "label_studio" / "answers.jsonl").open()]
    assert len(kept) == 3
    assert dialog in [line["raw"] for line in kept]
    # A selection that holds them asks for the others alone.
    assert "1 images wait" in paused(people, wanted(files, 0, 1, 2, 3), files)
    assert [task["data"]["uid"] for task in read_json(jobs(answers)[1] / "tasks.json")] == ["0003"]


def test_half_done_work_is_kept_and_waited_for(people: LabelStudio, files: LlavaFiles, answers: Path) -> None:
    images = wanted(files, *range(6))
    paused(people, images, files)
    (job,) = jobs(answers)
    half: dict[str, list[Task]] = {
        "0000": [],
        "0001": [written(question=["What?"])],
        "0002": [written()],
        "0003": [written(question=["<image> what?"], answer=["This."])],
    }
    exported = export(job, half)
    # By default Label Studio leaves tasks out that nobody annotated; else they come without annotations.
    assert "'0000' (not annotated)" in paused(people, images, files)
    write_json(job / "export.json", [task for task in exported if task["data"]["uid"] != "0000"])
    told = paused(people, images, files)
    assert "4 images wait for annotators" in told
    assert "import" not in told
    assert (
        "the export lacks '0000' (not in the export), '0001' (questions: 1, answers: 0), "
        "'0002' (nothing written), '0003' (it contains the image token <image>"
    ) in told
    assert len((answers / "label_studio" / "answers.jsonl").read_text().splitlines()) == 2
    export(job)
    assert len(people.reveal(images, files).records) == 6


def extended(*elements: Any) -> Task:
    """A complete annotation with further elements."""
    annotation = annotated("0000")
    annotation["result"] += elements
    return annotation


def answer(**value: Any) -> Task:
    return {"from_name": "answer", "to_name": "image", "type": "textarea"} | value


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (None, "not annotated"),
        ([annotated("0000") | {"result": None}], "its result is not a list of objects"),
        ([annotated("0000") | {"result": "text"}], "its result is not a list of objects"),
        ([extended(None)], "its result is not a list of objects"),
        ([extended([])], "its result is not a list of objects"),
        ([extended(answer())], "the answer is not text"),
        *(
            ([extended(answer(value=value))], "the answer is not text")
            for value in (None, "text", [], {"text": None}, {"text": [None]}, {"text": 5}, {"text": [["x"]]})
        ),
        *(
            ([annotated("0000") | {"result": [answer(value=value)]}], "nothing written")
            for value in ({}, {"text": []}, {"text": ""}, {"text": [" "]}, {"choices": ["x"]})
        ),
        ([written(question=["\ud800"], answer=["x"])], "it contains half of a surrogate pair"),
    ],
)
def test_odd_annotations_count_as_none(
    made: Any, reason: str, people: LabelStudio, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, 0, 1)
    paused(people, images, files)
    (job,) = jobs(answers)
    tasks = export(job)
    tasks[-1]["annotations"] = made
    (job / "export.json").write_text(json.dumps(tasks))
    assert f"the export lacks '0000' ({reason}" in paused(people, images, files)
    # Another annotation that is complete counts.
    tasks[-1]["annotations"] = [*(made or []), annotated("0000") | {"id": 99}]
    (job / "export.json").write_text(json.dumps(tasks))
    assert len(people.reveal(images, files).records) == 2


def test_a_starred_annotation_counts_first(
    people: LabelStudio, files: LlavaFiles, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = wanted(files, 0, 1)
    paused(people, images, files)
    (job,) = jobs(answers)
    old, new = (written(number, question=["What?"], answer=[f"{number}."]) for number in (3, 4))
    starred = {"ground_truth": True}
    half = written(2, question=["What?"]) | starred
    for made, text in (
        ([new, old], "3."),
        ([old, new | starred], "4."),
        ([new | starred, old | starred], "3."),
        ([new, old, half], "3."),
    ):
        export(job, {"0000": made})
        records, _ = people.reveal(images, files)
        assert records[0].conversations[1]["value"] == text
        told = " ".join(capsys.readouterr().out.split())
        assert "1 images have several annotations; the oldest starred one is used, or else the oldest" in told
        assert "'0000'" in told


def test_skipped_images_are_unanswered_until_somebody_annotates_them(
    people: LabelStudio, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, 0, 1)
    paused(people, images, files)
    (job,) = jobs(answers)
    export(job, {"0001": [SKIPPED]})
    records, unanswered = people.reveal(images, files)
    assert [record.id for record in records] == ["0000"]
    assert unanswered == {"0001": "skipped by the annotator"}
    export(job)
    assert len(people.reveal(images, files).records) == 2


def test_nobody_is_asked_while_another_selection_waits(
    people: LabelStudio, files: LlavaFiles, answers: Path
) -> None:
    paused(people, wanted(files, 0, 1), files)
    told = paused(people, wanted(files, 1, 2), files)
    first, second = jobs(answers)
    assert str(first) in told
    assert str(second) in told
    assert [task["data"]["uid"] for task in read_json(second / "tasks.json")] == ["0002"]


def test_one_project_may_hold_the_tasks_of_all_jobs(
    people: LabelStudio, files: LlavaFiles, answers: Path
) -> None:
    paused(people, wanted(files, 0, 1), files)
    (first,) = jobs(answers)
    before = export(first)
    people.reveal(wanted(files, 0, 1), files)
    told = paused(people, wanted(files, 0, 1, 2), files)
    (second,) = set(jobs(answers)) - {first}
    assert f"annotators in {second}; import" in told
    together = before + export(second)
    for job in (first, second):
        write_json(job / "export.json", together)
    records, unanswered = people.reveal(wanted(files, 0, 1, 2), files)
    assert not unanswered
    assert [record.id for record in records] == ["0000", "0001", "0002"]
    write_json(second / "export.json", before)
    with pytest.raises(PreselError, match=r"export\.json: 2 of its answers .* move it to that one's folder"):
        people.reveal(wanted(files, 0, 1, 2), files)


Spoil = Callable[[list[Task]], object]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tasks: tasks[1]["data"].update(uid="0099"), r"1 of its answers .*'0099'.*another selection"),
        (lambda tasks: tasks[1]["data"].update(digest="other"), r"'0001 of another pool'"),
        (
            lambda tasks: tasks.append(tasks[0]),
            r"1 images are answered more than once \('0002'; .* export\.json",
        ),
        (lambda tasks: tasks[0].pop("annotations"), r"export\.json: task 1 .*as JSON \(not JSON-MIN"),
        (lambda tasks: tasks[2].pop("data"), r"export\.json: task 3 has no 'data'"),
        (lambda tasks: tasks[0]["annotations"][0].pop("id"), r"no 'annotations' with 'id' and 'result'"),
        # As a storage gives it that was synced.
        (
            lambda tasks: tasks[1].update(data={"image": tasks[1]["data"]["image"]}),
            r"export\.json: task 2 was not imported from tasks\.json, .*; delete it from the project",
        ),
    ],
)
def test_an_export_that_does_not_belong_is_refused(
    spoil: Spoil, message: str, people: LabelStudio, files: LlavaFiles, answers: Path
) -> None:
    images = wanted(files, 0, 1, 2)
    paused(people, images, files)
    (job,) = jobs(answers)
    tasks = export(job)
    spoil(tasks)
    write_json(job / "export.json", tasks)
    with pytest.raises(PreselError, match=message) as told:
        people.reveal(images, files)
    assert not isinstance(told.value, Paused)
    assert not (answers / "label_studio" / "answers.jsonl").read_text()


_JSON_MIN = """[{
  "image": "/data/local-files/?d=images/0000.png", "uid": "0000", "task": "vqa", "digest": "efd5b770",
  "id": 1, "question": "How many?", "answer": {"text": ["Three.", "Four."]}, "annotator": 1,
  "annotation_id": 1, "created_at": "2026-11-25T09:34:54.787611Z", "lead_time": 7.365
}]"""
_CSV = """"annotation_id","annotator","answer","digest","id","image","question","task","uid"
1,"1","Three.","efd5b770",1,"/data/local-files/?d=images/0000.png","How many?","vqa","0000"
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_JSON_MIN, r"export\.json: task 1 has no 'data', .*; export from Label Studio as JSON"),
        (
            _CSV,
            r"export\.json: this is not a complete JSON list.*; export from .* as JSON \(not JSON-MIN or CSV",
        ),
        ('[{"id": 1, "annot', r"export\.json: this is not a complete JSON list; export"),
        ('{"tasks": []}', r"export\.json: this is not a complete JSON list; export"),
        ('[{"data": ' + "[" * 100_000, r"export\.json: this is not a complete JSON list; export"),
        ("[null]", r"export\.json: task 1 has no 'data'"),
        ('[{"data": null, "annotations": []}]', r"export\.json: task 1 has no 'data'"),
        ('[{"data": {}, "annotations": [null]}]', "task 1 .*no 'annotations' with 'id' and 'result'"),
        ('[{"data": {"uid": null, "digest": 5}, "annotations": null}]', "task 1 was not imported from"),
    ],
)
def test_another_format_is_refused(
    text: str, message: str, people: LabelStudio, files: LlavaFiles, answers: Path
) -> None:
    paused(people, wanted(files, 0), files)
    (job,) = jobs(answers)
    (job / "export.json").write_text(text)
    with pytest.raises(PreselError, match=message):
        people.reveal(wanted(files, 0), files)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("utf-16", "UTF-8"), ("gbk", "UTF-8"), (None, r"export\.json")],
)
def test_a_file_that_cannot_be_read_is_named(
    encoding: str | None, message: str, people: LabelStudio, files: LlavaFiles, answers: Path
) -> None:
    paused(people, wanted(files, 0), files)
    (job,) = jobs(answers)
    if encoding:
        (job / "export.json").write_text('[{"data": {"task": "街"}}]', encoding=encoding)
    else:
        os.mkfifo(job / "export.json")
    with pytest.raises(PreselError, match=message):
        people.reveal(wanted(files, 0), files)


def test_a_damaged_job_is_reported(people: LabelStudio, files: LlavaFiles, answers: Path) -> None:
    paused(people, wanted(files, 0), files)
    (job,) = jobs(answers)
    (job / "job.json").write_text("[{}]")
    with pytest.raises(PreselError, match=r"job\.json: .* delete its folder"):
        people.reveal(wanted(files, 0), files)


def test_a_run_pauses_twice_and_ends(in_process: Program, pool_folder: Path) -> None:
    command = ["run", *on_folder(pool_folder), "instructions=label_studio", "until=instructions", OWN_STORE]
    answers = pool_folder / "outputs" / "answers"
    asked: list[set[str]] = []
    for _ in range(2):
        for _ in range(2):
            # Asking again before the people are done changes nothing.
            result = in_process(*command)
            assert result.returncode == 3, result.stderr
            assert "images wait for annotators in " in result.stderr.splitlines()[-1]
        job = jobs(answers)[-1]
        asked.append({task["data"]["uid"] for task in export(job)})
    reference, selection = asked
    assert (len(reference), len(selection)) == (3, 6)
    assert not reference & selection
    result = in_process.succeeds(*command)
    assert stage_lines(result.stdout)["model (reference)"] == "reused"
    (train,) = [Path(line.split()[-1]) for line in result.stdout.splitlines() if "training file" in line]
    records = {record["id"]: record["conversations"][1]["value"] for record in read_json(train)}
    assert records == {name: f"A thing on {name}." for name in reference | selection}
    # A correction is neither overlooked nor taken up unasked: what rests on the annotations would stay.
    name = min(selection)
    export(job, {name: [written(12, question=["What is it?"], answer=["Another thing."])]})
    answers_before = (answers / "label_studio" / "answers.jsonl").read_bytes()
    told = in_process.refuses(*command)
    assert f"annotations have changed since this run read them: '{name}', in outputs/answers" in told
    assert (answers / "label_studio" / "answers.jsonl").read_bytes() == answers_before
    result = in_process.succeeds(*command, "instructions.revision=1")
    (train,) = [Path(line.split()[-1]) for line in result.stdout.splitlines() if "training file" in line]
    corrected = {record["id"]: record["conversations"][1]["value"] for record in read_json(train)}
    assert corrected == records | {name: "Another thing."}
