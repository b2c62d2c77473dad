"""Mistakes at the real command line: one clear error, no traceback, exit code 2, before any training."""

import json
import resource
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from tests.helpers import OWN_STORE, TINY, Program, command, environment, on_folder, record, refused
from tests.pictures import two_kinds

Spoil = Callable[[Path], None]


def rewrite(change: Callable[[list[dict[str, object]]], object]) -> Spoil:
    """Changes the records of the annotation file."""

    def spoil(folder: Path) -> None:
        records = json.loads((folder / "pool.json").read_text())
        change(records)
        (folder / "pool.json").write_text(json.dumps(records))

    return spoil


def truncate(folder: Path) -> None:
    text = (folder / "pool.json").read_text()
    (folder / "pool.json").write_text(text[: len(text) // 2])


def one_image_task(folder: Path) -> None:
    rewrite(lambda records: records[0].update(task="lonely"))(folder)


CASES: dict[str, tuple[Spoil, list[str]]] = {
    "missing file": (lambda folder: (folder / "pool.json").unlink(), ["pool.json"]),
    "broken JSON": (truncate, ["pool.json", "line"]),
    "no image": (rewrite(lambda records: records[3].pop("image")), ["record 3", "image"]),
    "unknown role": (
        rewrite(lambda records: records[3]["conversations"][0].update({"from": "robot"})),  # type: ignore[index]
        ["record 3", "robot"],
    ),
    "no answer": (
        rewrite(lambda records: records[3].update(conversations=records[3]["conversations"][:1])),  # type: ignore[index]
        ["record 3", "conversations"],
    ),
    "duplicate ids": (rewrite(lambda records: records[3].update(id="0001")), ["'0001'", "record 3"]),
    "path out of the folder": (
        rewrite(lambda records: records[3].update(image="../secret.png")),
        ["record 3", "../secret.png"],
    ),
    "task of one image": (one_image_task, ["task 'lonely' has a single usable image"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_annotation_file_is_refused(case: str, in_process: Program, pool_folder: Path) -> None:
    spoil, words = CASES[case]
    spoil(pool_folder)
    refused(in_process("run", *on_folder(pool_folder), OWN_STORE), *words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["budget=0"], ["budget is 0.0; it must be a share of the pool"]),
        (["budget=61"], ["budget=61 is above the pool's 60 images"]),
        (["pool.limit=61"], ["pool.limit=61 is above the 60 images there are; lower it, or set it to null"]),
        (
            ["pool.limit=45", "pool.limit_per_task=20"],
            ["pool.limit=45 is above the 40 images there are; lower it"],
        ),
        (["budget=2"], ["fewer than the 3 of the reference set"]),
        (["until=report"], ["until is report; it must be one of selection, instructions"]),
        (["pool.images=nowhere"], ["nowhere"]),
        (["paths.min_free_gb=1e9"], ["make room or set paths.store to another disk"]),
        (["budgett=1"], ["did you mean 'budget'?"]),
        (["tau=none"], ["choose one of auto, fixed"]),
        (["tune.lr=fast"], ["tune.lr"]),
        (
            ["budget=30.5"],
            ["budget is 30.5; it must be a share of the pool, above 0 and up to 1 (0.15), or a whole"],
        ),
        (["lvlm=hf", "lvlm.path=/nowhere"], ["no model in /nowhere: it has no config.json"]),
        (["encoder.path=models/dinoo"], ["'models/dinoo' is no folder, and the hub gives no model"]),
        (["evaluation.metrics={QA: cider}"], ["names 'QA', which is no benchmark; there are ocr, vqa"]),
        (["evaluation.metric=box_accuracy"], ["record '0000' of benchmark 'ocr'", "contains no box"]),
        (
            ["lvlm.template=llama_3"],
            ["lvlm.template=llama_3 ends a response by '<|eot_id|>'", "set lvlm.template=vicuna_v1 or"],
        ),
        (
            ["lvlm.max_length=40"],
            [
                "longer than lvlm.max_length=40",
                "3 in benchmark 'ocr': '0000', '0003', '0006'",
                "5 in benchmark",
            ],
        ),
    ],
)
def test_a_bad_setting_is_refused(
    overrides: list[str], words: list[str], in_process: Program, pool_folder: Path
) -> None:
    refused(in_process("run", *on_folder(pool_folder), *overrides, OWN_STORE), *words)


def test_a_disk_that_fills_up_is_one_error_and_nothing_is_lost(in_process: Program, tmp_path: Path) -> None:
    def limit() -> None:
        # Stands in for a full disk: no file may grow beyond 40 kB.
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))

    arguments = ("run", *TINY, "until=selection", "strategy=random", OWN_STORE)
    full = subprocess.run(
        command(*arguments),
        cwd=tmp_path,
        # Coverage would need a larger file.
        env=environment(COVERAGE_PROCESS_CONFIG=""),
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    refused(full, "cannot write", "run the same command again")
    in_process.succeeds(*arguments)


def test_odd_images_are_read_rightly_and_broken_ones_counted(in_process: Program, pool_folder: Path) -> None:
    images = pool_folder / "images"
    Image.new("CMYK", (30, 30), (0, 255, 255, 0)).save(images / "cmyk.jpg")
    Image.new("I;16", (30, 30), 40_000).save(images / "deep.png")
    Image.new("RGB", (1, 1)).save(images / "dot.png")
    (images / "empty.png").touch()
    (images / "cut.png").write_bytes((images / "0001.png").read_bytes()[:300])
    records = json.loads((pool_folder / "pool.json").read_text())
    for number, name in enumerate(["cmyk.jpg", "deep.png", "dot.png", "empty.png", "cut.png", "gone.png"]):
        records.append(record(100 + number, image=name))
    (pool_folder / "pool.json").write_text(json.dumps(records))
    refused(
        in_process("run", *on_folder(pool_folder), "until=selection"),
        "4 of 66 images are unusable",
        "record '0102', dot.png: too small",
    )


def test_names_that_hydra_takes_apart_are_shown_quoted_and_so_work(
    in_process: Program, tmp_path: Path
) -> None:
    for name in ("büro", "日本"):
        two_kinds(tmp_path / "home" / name)
    common = ("run", "-m", "pool=image_folder", "strategy=random", "until=selection", "executor.workers=0")
    told = in_process(*common, "pool.images=~/büro,~/日本")
    refused(told, """write 'pool.images="~/büro","~/日本"'""")
    (shown,) = shlex.split(told.stderr.partition("write ")[2])
    in_process.succeeds(
        *common, shown, 'paths.runs="~/runs"', 'paths.store="~/store"', HOME=f"{tmp_path}/home"
    )
    assert len(list(tmp_path.glob("home/store/selection/*/manifest.json"))) == 2
    assert len(list(tmp_path.glob("home/runs/*/*/*/run.json"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_help_lists_groups_and_commands(program: Program, in_process: Program) -> None:
    overview = in_process.succeeds("--help")
    assert "run" in overview.stdout
    details = program.succeeds("run", "--help")
    for word in (
        "strategy: How the images are chosen.\n    clip_score ",
        "\n  * presel ",
        "tau: Temperature of the task weights (eq. 5).\n  * auto ",
        "\n  budget ",
        "-m, --multirun           sweep over values",
    ):
        assert word in details.stdout
    unknown = in_process.refuses("rum")
    assert "there is no command 'rum'" in unknown


def test_the_store_command_lists_verifies_and_cleans(in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("run", *TINY, "until=selection", "strategy=random", OWN_STORE)
    store = tmp_path / "outputs" / "store"
    assert "selection" in in_process("store", "list").stdout
    assert "problems: 0" in in_process("store", "verify").stdout
    halfway, running = store / "features" / "0123456789abcdef", store / "features" / "fedcba9876543210"
    halfway.mkdir(parents=True)
    found = in_process("store", "verify")
    # Another run may be at work on it.
    assert found.returncode == 0
    assert "problems: 0, unfinished: 1" in found.stdout
    assert "1 unfinished results deleted" in in_process("store", "clean").stdout
    assert not halfway.exists()
    running.mkdir()
    with FileLock(running.with_suffix(".lock")):
        assert "which a run is computing" in in_process("store", "clean").stdout
    assert running.exists()
    assert "is no folder" in in_process("store", "list", "--store", "nowhere").stderr


def test_no_folder_but_a_store_is_cleaned(in_process: Program, tmp_path: Path) -> None:
    answers, picture = tmp_path / "outputs/answers/openai/answers.jsonl", tmp_path / "photos/cats/tabby/1.jpg"
    for file in (answers, picture):
        file.parent.mkdir(parents=True)
        file.touch()
    for folder in ("outputs", "photos"):
        for action in ("list", "verify", "clean"):
            assert f"--store={folder} holds no results" in in_process.refuses(
                "store", action, "--store", folder
            )
    # Beside results, as where a store was put into a folder of other things.
    (tmp_path / "photos/pool/0123456789abcdef").mkdir(parents=True)
    assert "1 unfinished results deleted" in in_process("store", "clean", "--store", "photos").stdout
    assert (answers.exists(), picture.exists()) == (True, True)
    assert "0 unfinished results deleted" in in_process("store", "clean", "--store", "photos").stdout
