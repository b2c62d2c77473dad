"""`presel doctor` on pools with planted faults: each is found by name, nothing sound is accused."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from presel.data.digits.scenes import Contents, render_scenes, sample, vary_scenes
from presel.data.near_duplicates import KEYS, MAX_BITS, candidates, group_near_duplicates
from presel.doctor.findings import of_ambiguous_names
from tests.generation_server import Plan, running
from tests.helpers import OWN_STORE, TINY, Program, record
from tests.pictures import two_kinds

SOUND = 90


def picture(number: int) -> Image.Image:
    """A colorful picture like no other: coarse noise, smoothed, so that scaling keeps it."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC)


class Planted:
    """A pool of sound records, and whatever faults are added to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir()
        self.records: list[Any] = []
        for number in range(SOUND):
            self.add(number, "ocr" if number % 3 else "vqa")
            picture(number).save(self.images / f"{number:04}.png")

    def add(self, number: int, task: str = "vqa", **changes: Any) -> None:
        """Adds a record."""
        self.records.append(record(number, task, **changes))

    def write(self) -> None:
        (self.folder / "pool.json").write_text(json.dumps(self.records))


def overrides(folder: Path) -> list[str]:
    return [
        "pool=llava_json",
        f"pool.annotations={folder}/pool.json",
        f"pool.images={folder}/images",
        "executor.workers=0",
    ]


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def found(result: Any) -> dict[str, list[dict[str, Any]]]:
    """The findings of the JSON on the standard output, by kind."""
    assert result.stdout, result.stderr
    kinds: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(result.stdout)["findings"]:
        kinds.setdefault(finding["kind"], []).append(finding)
    return kinds


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that claims a trillion pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1_000_000, 1_000_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# Faults of the image file, by the kind that is to be found. The file is `planted` and its ending.
FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty file": lambda path: path.touch(),
    "not an image of a known format": lambda path: path.write_bytes(b"\x80rubbish"),
    "a web page": lambda path: path.write_text("<html>404 Not Found</html>"),
    "HEIC": lambda path: path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
    "a Git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "truncated": lambda path: path.write_bytes(jpeg(picture(1000))[:2000]),
    "too small": lambda path: Image.new("RGB", (1, 9)).save(path),
    "too large": lambda path: path.write_bytes(bomb()),
    "a folder": lambda path: path.mkdir(),
    "not a regular file": lambda path: os.mkfifo(path),
    "leaves the image folder": lambda path: path.symlink_to("/etc/hostname"),
    "cannot be opened": lambda path: path.symlink_to(path.name),
    "floating-point pixels": lambda path: Image.new("F", (30, 30)).save(path, "TIFF"),
    # Usable, but not as they should be.
    "a single color": lambda path: path.write_bytes(jpeg(Image.new("RGB", (90, 90), "teal"))),
    # 12 bits stored as 16.
    "nearly black": lambda path: Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(
        path, "PNG"
    ),
    "tiny": lambda path: path.write_bytes(jpeg(picture(1001).resize((20, 15)))),
    "long and narrow": lambda path: path.write_bytes(jpeg(picture(1002).resize((600, 40)))),
    "wrong name for its format": lambda path: picture(1003).save(path, "PNG"),
    "several frames, only the first is used": lambda path: picture(1004).save(
        path, "GIF", save_all=True, append_images=[picture(1005)]
    ),
    "rotated by EXIF": lambda path: picture(1006).save(
        path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
    "converted to RGB": lambda path: picture(1007).convert("CMYK").save(path),
}

HUMAN = {"from": "human", "value": "<image>\nWhat is it?"}
GPT = {"from": "gpt", "value": "A cat."}

# Faults of the record: what is changed in a sound one.
RECORDS: dict[str, dict[str, Any]] = {
    "no id": {"id": " "},
    "repeated id": {"id": "0001"},
    "no image": {"image": None},
    "bad image path": {"image": "../0000.png"},
    "no task": {"task": ""},
    "no conversation": {"conversations": []},
    "no answer": {"conversations": [HUMAN]},
    "no question": {"conversations": [{"from": "human", "value": ""}, GPT]},
    "unknown role": {"conversations": [HUMAN, {"from": "robot", "value": "A cat."}]},
    "turns out of order": {"conversations": [GPT, HUMAN]},
    "no <image>": {"conversations": [{"from": "human", "value": "What is it?"}, GPT]},
    "several <image>": {"conversations": [{"from": "human", "value": "<image><image>"}, GPT]},
    "half a character": {"conversations": [HUMAN, {"from": "gpt", "value": "A \ud83d cat."}]},
    "control character": {"image": "0000.png\n"},
    "format of another program": {"image": "", "images": ["0000.png"]},
    "bad turn": {"conversations": ["What is it?", GPT]},
}


def test_every_fault_is_found_by_name_and_nothing_sound_is_accused(
    in_process: Program, planted: Planted
) -> None:
    for number, (kind, make) in enumerate(FILES.items(), start=500):
        make(planted.images / f"file{number}.jpg")
        planted.add(number, image=f"file{number}.jpg", id=kind)
    for number, changes in enumerate(RECORDS.values(), start=600):
        if "image" not in changes:
            picture(number).save(planted.images / f"{number:04}.png")
        planted.add(number, **changes)
    planted.records.append("not a record")
    # Copies: the same file, the same bytes, in one task and in another.
    planted.add(701, "ocr", image="0001.png")
    (planted.images / "copy.png").write_bytes((planted.images / "0001.png").read_bytes())
    planted.add(702, "vqa", image="copy.png")
    # Names that are one where case does not count, and files that nobody names.
    picture(703).save(planted.images / "Name.png")
    picture(704).save(planted.images / "name.png")
    planted.add(703, image="Name.png")
    planted.add(704, image="name.png")
    picture(705).save(planted.images / "0705.png")
    planted.add(705, "Ocr ", conversations=[HUMAN, GPT | {"value": "A <b>cat</b>.</s><|eot_id|></s>"}])
    picture(706).save(planted.images / "nobody.png")
    planted.write()

    kinds = found(in_process("doctor", *overrides(planted.folder), "--json", "-"))

    for kind in FILES:
        assert [kind] in [finding["ids"] for finding in kinds[kind]], kind
    for number, kind in enumerate(RECORDS, start=600):
        assert [f"record {number - 600 + SOUND + len(FILES)} " in f["where"] for f in kinds[kind]] == [
            True
        ], kind
    assert "the record is text" in kinds["not an object"][0]["detail"]
    assert kinds["duplicates in a task"][0]["ids"] == ["0001", "0701"]
    assert kinds["duplicates across tasks"][0]["ids"] == ["0001", "0701", "0702"]
    assert kinds["images whose names hardly differ"][0]["images"] == ["Name.png", "name.png"]
    assert kinds["tasks whose names hardly differ"][0]["where"] == "'ocr' and 'Ocr '"
    assert [finding["images"] for finding in kinds["image that no record names"]] == [["nobody.png"]]
    assert kinds["task of a single image"][0]["where"] == "task 'Ocr '"
    assert kinds["reference set too small"]
    special = kinds["special token in the text, read as text"]
    assert [(finding["ids"], finding["detail"]) for finding in special] == [(["0705"], "</s> <|eot_id|>")]
    assert "14 of 117" in kinds["more unusable images than allowed"][0]["detail"]
    expected = {*FILES, *RECORDS, "not an object", "duplicates in a task", "duplicates across tasks"}
    expected |= {"images whose names hardly differ", "tasks whose names hardly differ"}
    expected |= {"image that no record names", "task of a single image", "reference set too small"}
    expected |= {"more unusable images than allowed", "task smaller than a cluster"}
    expected |= {"special token in the text, read as text"}
    assert kinds.keys() == expected
    assert kinds["HEIC"][0]["detail"] == "which is not read; convert it to JPEG or PNG"
    assert kinds["a Git LFS pointer"][0]["detail"] == "run git lfs pull"
    assert kinds["nearly black"][0]["detail"] == "16 of 256 gray levels"
    accused = {name for findings in kinds.values() for finding in findings for name in finding["ids"]}
    assert accused == {*FILES, "0001", "0701", "0702", "0705"}


VARIANTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded": lambda image: Image.open(io.BytesIO(jpeg(image, 40))),
    "halved": lambda image: image.resize((80, 60), Image.Resampling.LANCZOS),
    "enlarged": lambda image: image.resize((400, 300), Image.Resampling.BICUBIC),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darkened": lambda image: ImageEnhance.Brightness(image).enhance(0.88),
    "cut": lambda image: image.crop((2, 2, 158, 118)),
}


def test_near_duplicates_are_found(in_process: Program, planted: Planted) -> None:
    for number, (name, change) in enumerate(VARIANTS.items()):
        change(picture(number)).save(planted.images / f"{name}.png")
        planted.add(800 + number, image=f"{name}.png")
    planted.write()
    result = in_process("doctor", *overrides(planted.folder), "--json", "-")
    groups = [finding["images"] for finding in found(result)["near-duplicates"]]
    assert groups == [[f"{number:04}.png", f"{name}.png"] for number, name in enumerate(VARIANTS)]
    assert result.returncode == 0, "near-duplicates are no faults"
    assert json.loads(result.stdout)["near_duplicates"] == {"groups": 6, "images": 12, "share": 12 / 96}


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything; of `temporary`, which may be used, only what is in it."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.name != "temporary"
    }


def test_a_sound_pool_has_no_findings_and_nothing_is_written(program: Program, planted: Planted) -> None:
    planted.write()
    for name in ("home", "temporary"):
        (planted.folder / name).mkdir()
    before = snapshot(planted.folder)
    result = program.succeeds(
        "doctor",
        *overrides(planted.folder),
        "strategy=random",
        "cluster.images_per_cluster=10",
        HOME=str(planted.folder / "home"),
        TMPDIR=str(planted.folder / "temporary"),
    )
    assert "nothing is wrong" in result.stdout
    assert "instructions: 14 images; free of charge" in result.stdout
    assert result.stdout.count("66.7") == 1, "two thirds are of one task"
    printed = " ".join(result.stdout.split())
    assert "time unknown, since there is no similar run in the store:" in printed
    assert snapshot(planted.folder) == before


def test_only_the_sample_is_examined(in_process: Program, planted: Planted) -> None:
    planted.write()
    settings = ("strategy=random", "cluster.images_per_cluster=10", "pool.limit=60")
    result = in_process.succeeds("doctor", *overrides(planted.folder), *settings)
    assert "60 records, 60 usable images" in result.stdout
    assert "nothing is wrong" in result.stdout


def test_the_built_in_pool_is_drawn_aside_and_found_sound(in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("doctor", *TINY, "--json", "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert report["usable_images"] == 200
    assert sum(task["images"] for task in report["tasks"].values()) == 200
    assert report["instructions"] == {"images": 30, "tokens": None, "money": None, "exceeds": []}
    assert {stage["stage"] for stage in report["stages"]} >= {"pool", "features", "model (selection)"}


def test_times_come_from_earlier_runs(in_process: Program, planted: Planted) -> None:
    planted.write()
    arguments = [*overrides(planted.folder), "until=selection", "strategy=typiclust", OWN_STORE]
    in_process.succeeds("run", *arguments)
    done = json.loads(in_process("doctor", *arguments, "--json", "-").stdout)["stages"]
    assert {stage["seconds"] for stage in done} == {0.0}
    planted.records.pop()
    planted.write()
    again = json.loads(in_process("doctor", *arguments, "--json", "-").stdout)["stages"]
    features = next(stage for stage in again if stage["stage"] == "features")
    assert features["source"].startswith("a run on 90 of ")
    assert features["seconds"] > 0


def test_a_pool_that_a_run_would_stop_at_only_later(in_process: Program, planted: Planted) -> None:
    planted.write()
    kinds = found(in_process("doctor", *overrides(planted.folder), "budget=3", "--json", "-"))
    assert "fewer than the 5 of the reference set" in kinds["budget that cannot be met"][0]["detail"]
    lines = [json.dumps(one) for one in planted.records]
    (planted.folder / "pool.jsonl").write_text("\n".join([*lines[:5], '{"id": "cut', *lines[5:]]))
    result = in_process("doctor", *overrides(planted.folder), f"pool.annotations={planted.folder}/pool.jsonl")
    assert result.returncode == 1
    assert "malformed JSON" in result.stdout
    assert "line 6 column 8" in result.stdout
    assert "90 records, 90 usable images" in result.stdout


def test_benchmarks_are_held_against_the_pool(in_process: Program, planted: Planted) -> None:
    planted.write()
    held_out = [record(900, image="0007.png"), record(901, image="gone.png")]
    (planted.folder / "eval.json").write_text(json.dumps(held_out))
    evaluation = ["evaluation=llava_json", f"evaluation.annotations={planted.folder}/eval.json"]
    arguments = [*overrides(planted.folder), *evaluation, f"evaluation.images={planted.folder}/images"]
    kinds = found(in_process("doctor", *arguments, "--json", "-"))
    assert [one["images"] for one in kinds["image also in a benchmark"]] == [["0007.png"]]
    assert kinds["unusable benchmark image"][0]["where"] == "'0901' of benchmark 'vqa', gone.png"


def test_validation_samples_are_examined_where_a_strategy_reads_them(
    in_process: Program, planted: Planted
) -> None:
    planted.write()
    held_out = [record(900, image="0007.png"), record(901, image="gone.png")]
    (planted.folder / "val.json").write_text(json.dumps(held_out))
    validation = ["validation=llava_json", f"validation.annotations={planted.folder}/val.json"]
    arguments = [*overrides(planted.folder), *validation, f"validation.images={planted.folder}/images"]
    kinds = found(in_process("doctor", *arguments, "strategy=less", "--json", "-"))
    assert kinds["unusable validation image"][0]["where"] == "'0901' of validation 'vqa', gone.png"
    kinds = found(in_process("doctor", *arguments, "strategy=random", "--json", "-"))
    assert "unusable validation image" not in kinds


def test_a_page_that_cannot_be_written_costs_no_diagnosis(in_process: Program, planted: Planted) -> None:
    planted.write()
    for name in ("json", "html"):
        refused = in_process.refuses("doctor", *overrides(planted.folder), f"--{name}", str(planted.folder))
        assert f"--{name}={planted.folder} is a folder; name a file" in refused
    unwritable = planted.folder / "pool.json" / "found.html"
    result = in_process("doctor", *overrides(planted.folder), "--html", str(unwritable))
    assert result.returncode == 2
    assert "90 records, 90 usable images" in result.stdout
    assert str(planted.folder / "pool.json") in result.stderr


@pytest.mark.parametrize("task", ["nan", "NaN", "None", "null", "N/A"])
def test_tasks_named_like_missing_values_are_warned_of(task: str) -> None:
    table = pd.DataFrame({"image": ["a.png", "b.png"], "task": ["nano", task]})
    (finding,) = of_ambiguous_names(table)
    assert (finding.severity, finding.where) == ("warning", f"task '{task}'")


def test_a_pool_without_a_usable_record_is_a_table_of_faults(in_process: Program, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "pool.json").write_text(json.dumps([{"messages": [HUMAN, GPT], "images": ["1.jpg"]}]))
    result = in_process("doctor", *overrides(tmp_path), "--json", "report.json")
    assert result.returncode == 1, result.stderr
    assert "format of another program: 1" in result.stdout
    assert json.loads((tmp_path / "report.json").read_text())["records"] == 0


PRICED = """
from presel.component import component
from presel.instructions.annotations import Annotations
from presel.instructions.provider import Cost

@component
class Priced(Annotations):
    def estimate(self, images):
        return Cost(sum(images.values()) * 1000, sum(images.values()) * 0.5)
"""


def test_what_instructions_cost(in_process: Program, planted: Planted) -> None:
    planted.write()
    (planted.folder / "priced.py").write_text(PRICED)
    (planted.folder / "conf" / "instructions").mkdir(parents=True)
    (planted.folder / "conf" / "instructions" / "priced.yaml").write_text("_target_: priced.Priced")
    # Hydra's grammar takes no such name unquoted.
    (planted.folder / "conf").rename(planted.folder / "Jörgs, conf")
    before = snapshot(planted.folder)
    own = ["--config-dir", "Jörgs, conf", "instructions=priced"]
    result = in_process("doctor", *overrides(planted.folder), "budget=40", *own)
    assert "instructions: 40 images, 5 of them for the reference set" in result.stdout, result.stderr
    assert "about 40,000 tokens, cost 20.00" in " ".join(result.stdout.split())
    result = in_process("doctor", *overrides(planted.folder), "strategy=el2n", *own, "--json", "-")
    bought = {"images": 90, "tokens": 90_000, "money": 45.0, "exceeds": []}
    assert json.loads(result.stdout)["instructions"] == bought
    assert snapshot(planted.folder) == before


def test_limits_that_instructions_would_pass(in_process: Program, planted: Planted) -> None:
    planted.write()
    prices = [f"instructions.price_per_million_{what}_tokens=10" for what in ("prompt", "answer")]
    asks = ["instructions=openai", "instructions.model=seer", "instructions.key_variable=null", *prices]
    limits = ["instructions.max_money=0.25", "instructions.max_tokens_total=1000000"]
    with running(planted.folder, Plan()) as server:
        asks.append(f"instructions.base_url={server.url}")
        arguments = [
            *overrides(planted.folder),
            "budget=40",
            *asks,
            *limits,
            "--json",
            "found.json",
        ]
        result = in_process("doctor", *arguments)
        assert server.seen() == []
    said = " ".join(result.stdout.split())
    assert ", above instructions.max_money=0.25" in said, result.stderr
    bought = json.loads((planted.folder / "found.json").read_text())["instructions"]
    assert bought["money"] > 0.25 and bought["tokens"] < 1_000_000
    assert bought["exceeds"] == ["instructions.max_money=0.25"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pool=llava_jsno"], "did you mean 'llava_json'?"),
        (["budgett=1"], "did you mean 'budget'?"),
        (["pool=llava_json", "pool.images=x"], "pool.annotations has no value"),
        (["pool=llava_json", "pool.annotations=nowhere.json", "pool.images=."], "there is no such file"),
        (["until=report"], "until is report; it must be one of"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(
    in_process: Program, overrides: list[str], message: str
) -> None:
    result = in_process.refuses("doctor", *overrides)
    assert result.startswith("presel: error: ")
    assert message in result


def test_help_is_worth_reading(in_process: Program) -> None:
    text = in_process("doctor", "--help").stdout
    for word in ("examples:", "exit codes", "--json FILE", "near-duplicates"):
        assert word in text


# The search for near-duplicates.


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(2, 60), st.integers(0, 140))
def test_signatures_that_differ_little_are_always_found(seed: int, size: int, flips: int) -> None:
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (size, KEYS * 16), dtype=np.uint8)
    # Half of them are others with some bits turned over.
    for row in range(size // 2):
        bits[row] = bits[random.integers(size)]
        bits[row, random.choice(KEYS * 16, flips, replace=False)] ^= 1
    distances = (bits[:, None] != bits[None]).sum(axis=2)
    close = {tuple(pair) for pair in np.argwhere(np.triu(distances < KEYS, 1)).tolist()}
    near = {tuple(pair) for pair in np.argwhere(np.triu(distances <= MAX_BITS, 1)).tolist()}
    signatures = np.packbits(bits, axis=1).view(np.uint16)
    found = {tuple(sorted(pair)) for key in range(KEYS) for pair in candidates(signatures, key).tolist()}
    assert close <= found <= near


def thumbnails(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((16, 16), Image.Resampling.BOX)) for one in pictures]
    )


def test_scenes_photographed_again_are_found_among_others() -> None:
    random = np.random.default_rng(0)
    scenes = sample(random, 1000, Contents.zipf(random, 0.8))
    pictures = [render_scenes(scenes), render_scenes(vary_scenes(random, scenes))]
    first = group_near_duplicates(thumbnails(np.concatenate(pictures)))
    assert (first[1000:] == np.arange(1000)).mean() > 0.75
    assert (first[:1000] == np.arange(1000)).mean() > 0.99


def test_thousands_of_like_pictures_and_none() -> None:
    noise = np.random.default_rng(0).integers(-2, 3, (2000, 16, 16, 3))
    alike = np.clip(thumbnails(np.asarray(picture(0))[None]) + noise, 0, 255).astype(np.uint8)
    assert (group_near_duplicates(alike) == 0).all()
    flat = np.full((50, 16, 16, 3), 7, np.uint8)
    assert (group_near_duplicates(flat) == np.arange(50)).all()
    assert len(group_near_duplicates(flat[:0])) == 0


def test_every_row_of_a_manifest_that_cannot_be_used_is_found(in_process: Program, tmp_path: Path) -> None:
    two_kinds(tmp_path / "images")
    names = sorted(path.relative_to(tmp_path / "images").as_posix() for path in tmp_path.glob("images/*/*"))
    rows = [f"{name},{name[:4]}" for name in names]
    planted = [f"{names[0]},cats", "cats/odd.png,", "../cats/out.png,cats", ",dogs"]
    (tmp_path / "pool.csv").write_text("\n".join(["image,task", *rows, *planted]))
    result = in_process(
        *("doctor", "pool=manifest", f"pool.manifest={tmp_path}/pool.csv", f"pool.images={tmp_path}/images"),
        *("strategy=random", "budget=10", "until=selection", "executor.workers=0", "--json=-"),
    )
    assert result.returncode == 1, result.stderr
    kinds = found(result)
    for number, kind in enumerate(["duplicate id", "no task", "bad image path", "no image"], start=41):
        (finding,) = kinds[kind]
        assert finding["where"].endswith(f"pool.csv: row {number}")
    assert json.loads(result.stdout)["tasks"].keys() >= {"cats", "dogs"}


def test_images_in_no_sub_folder_lack_a_task_unless_tasks_are_discovered(
    in_process: Program, tmp_path: Path
) -> None:
    two_kinds(tmp_path / "images")
    (tmp_path / "images/cats/000.png").rename(tmp_path / "images/alone.png")
    common = ("doctor", "pool=image_folder", f"pool.images={tmp_path}/images", "strategy=random")
    common += ("until=selection", "executor.workers=0", "--json=-")
    (finding,) = found(in_process(*common))["no task"]
    assert finding["where"] == "alone.png"
    in_process.succeeds(*common, "tasks=discovered", "tasks.n_tasks=2")
