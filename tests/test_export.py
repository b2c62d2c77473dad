"""`presel export` on real runs: what other programs find, and what stops it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from presel.commands.diff import read_selection
from presel.commands.export import export
from presel.data.images import open_image
from presel.data.llava import Record
from presel.data.prompts import IMAGE_TOKEN, TEMPLATES, chat_template
from presel.errors import PreselError
from presel.export.formats import WRITERS
from presel.export.manifest import MANIFEST_JSON, TABLE
from presel.runs import RunRecord, load_run
from presel.settings.errors import explain
from presel.storage.integrity import read_manifest, write_manifest
from presel.storage.provenance import versions
from tests.helpers import OWN_STORE, TINY, InSubprocess, Program, last_run, read_records, record

# A provider of one's own that leaves the first image unanswered.
SHY = """
from presel.instructions.annotations import Annotations
from presel.instructions.provider import ProviderResult

class Shy(Annotations):
    def reveal(self, wanted, files):
        return ProviderResult(super().reveal(wanted[1:], files).records, {wanted[0].id: "refused"})
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shared_store: Path) -> RunRecord:
    """A run of PreSel that bought its instructions."""
    folder = tmp_path_factory.mktemp("run")
    InSubprocess(folder, shared_store).succeeds("run", "seed=3", "until=instructions", *TINY)
    return last_run(folder)


def run_on(in_process: Program, folder: Path, *overrides: str) -> RunRecord:
    """A quick run at random on the pool of `pool_folder`, or whatever pool the overrides name."""
    before = set(folder.glob("outputs/runs/*/*/run.json"))
    pool = (f"pool.annotations={folder}/pool.json", f"pool.images={folder}/images")
    in_process.succeeds(
        "run", "strategy=random", "budget=12", "pool=llava_json", *pool, "executor.workers=0", *overrides
    )
    (file,) = set(folder.glob("outputs/runs/*/*/run.json")) - before
    return load_run(file.parent)


def bought(run: RunRecord) -> list[Record]:
    return read_records(run.paths["instructions"])


def test_the_manifest_tells_what_and_why(run: RunRecord, in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("export", str(run.folder), "--format", "manifest", "--out", "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [MANIFEST_JSON, TABLE]

    table = pd.read_parquet(tmp_path / "out" / TABLE)
    selection = pd.read_parquet(run.paths["selection"])
    selected = selection[selection["selected"]].reset_index(drop=True)
    assert list(table.columns[:3]) == ["id", "image", "task"]
    assert set(table.columns) == set(selection.columns) - {"selected"} | {"image"}
    for column in ("id", "task", "cluster", "centrality", "rank", "why", "task_weight"):
        pd.testing.assert_series_equal(table[column], selected[column])
    assert table["image"].map(lambda image: (run.image_folder / image).is_file()).all()

    head = json.loads((tmp_path / "out" / MANIFEST_JSON).read_text())
    assert (head["strategy"], head["seed"], head["budget"], head["format"]) == ("presel", 3, 0.15, "manifest")
    assert (head["budget_images"], head["chosen_images"], head["pool_images"]) == (30, len(table), 200)
    assert head["image_folder"] == str(run.image_folder)
    assert head["versions"] == versions()
    assert "until=instructions" in head["overrides"]
    behind = {role: stage.key for role, stage in run.stages.items() if role != "instructions"}
    assert {role: stage["key"] for role, stage in head["stages"].items()} == behind
    assert head["stages"]["reference"]["settings"]["share"] == 0.05
    assert head["stages"]["clusters"]["settings"]["clustering"]["images_per_cluster"] == 100


def test_a_llava_export_is_a_pool_again(run: RunRecord, in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("export", str(run.folder), "--format", "llava", "--out", "out", "--images", "link")
    out = tmp_path / "out"
    records = read_records(out / "train.json")
    assert records == bought(run)
    table = pd.read_parquet(out / TABLE)
    assert table["id"].tolist() == [record.id for record in records]
    assert table["instructed"].all()
    files = sorted(path.relative_to(out / "images").as_posix() for path in out.glob("images/**/*.png"))
    assert files == sorted(table["image"])
    assert all((out / "images" / file).samefile(run.image_folder / file) for file in files)

    pool = ("pool.annotations=out/train.json", "pool.images=out/images")
    again = run_on(in_process, tmp_path, *pool, "until=instructions")
    assert {record.id for record in bought(again)} < {record.id for record in records}


@pytest.mark.parametrize("images", ["reference", "copy"])
def test_llama_factory_finds_turns_and_images(run: RunRecord, tmp_path: Path, images: str) -> None:
    export(run, "llama_factory", tmp_path / "out", images)
    entry = json.loads((tmp_path / "out/dataset_info.json").read_text())["selection"]
    assert entry["formatting"] == "sharegpt"
    samples = json.loads((tmp_path / "out" / entry["file_name"]).read_text())
    assert len(samples) == len(bought(run))
    tags, columns = entry["tags"], entry["columns"]
    for sample, one in zip(samples, bought(run), strict=True):
        turns = sample[columns["messages"]]
        roles = [turn[tags["role_tag"]] for turn in turns]
        assert roles == [tags["user_tag"], tags["assistant_tag"]] * (len(turns) // 2)
        texts = [turn[tags["content_tag"]] for turn in turns]
        assert [text.removeprefix("<image>\n") for text in texts] == [
            turn["value"].replace("<image>", "").strip() for turn in one.conversations
        ]
        # As LLaMA-Factory joins them; an absolute path stands for itself.
        files = [tmp_path / "out" / file for file in sample[columns["images"]]]
        assert "".join(texts).count("<image>") == len(files) == 1
        assert files[0].read_bytes() == (run.image_folder / one.images[0]).read_bytes()
        assert files[0].is_relative_to(tmp_path) == (images == "copy")


def test_ms_swift_finds_the_records_of_llama_factory_from_anywhere(run: RunRecord, tmp_path: Path) -> None:
    export(run, "ms_swift", tmp_path / "swift", "link")
    export(run, "llama_factory", tmp_path / "factory", "link")
    samples = json.loads((tmp_path / "swift/train.json").read_text())
    for sample in samples:
        (file,) = sample["images"]
        assert Path(file).is_file()
        sample["images"] = [str(Path(file).relative_to(tmp_path / "swift"))]
        question = sample["messages"][0]
        # ms-swift's templates add the line break.
        question["content"] = question["content"].replace("<image>", "<image>\n")
    assert samples == json.loads((tmp_path / "factory/train.json").read_text())


@pytest.mark.parametrize("images", ["reference", "link"])
def test_internvl_finds_lines_and_images_from_anywhere(run: RunRecord, tmp_path: Path, images: str) -> None:
    export(run, "internvl", tmp_path / "out", images)
    meta = json.loads((tmp_path / "out/meta.json").read_text())["selection"]
    lines = [json.loads(line) for line in Path(meta["annotation"]).read_text().splitlines()]
    assert meta["length"] == len(lines) == len(bought(run))
    for line, one in zip(lines, bought(run), strict=True):
        # As InternVL joins them.
        file = Path(meta["root"] + line["image"])
        assert file.read_bytes() == (run.image_folder / one.images[0]).read_bytes()
        assert file.is_relative_to(tmp_path) == (images == "link")
        assert [turn["from"] for turn in line["conversations"]] == [
            turn["from"] for turn in one.conversations
        ]


def test_trl_loads_messages_and_images_that_render_as_presel_renders_them(
    run: RunRecord, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    export(run, "trl", tmp_path / "out")
    # The manifest beside it is no training data.
    dataset = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    template = TEMPLATES["chatml"]
    for row, one in zip(dataset, bought(run), strict=True):
        assert row["id"] == one.id
        (image,) = row["images"]
        assert image.tobytes() == open_image(run.image_folder / one.images[0]).tobytes()
        parts = [part for message in row["messages"] for part in message["content"]]
        assert [part["type"] for part in parts].count("image") == 1
        assert not any(IMAGE_TOKEN in part["text"] for part in parts if part["type"] == "text")
        rendered = render_jinja_template([row["messages"]], chat_template=chat_template("chatml"))[0]
        assert rendered == ["".join(text for text, _ in template.render(one.conversations))]


def test_hugging_face_loads_a_dataset_with_its_images(
    run: RunRecord, in_process: Program, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    in_process.succeeds("export", str(run.folder), "--format", "hf", "--out", "out")
    dataset = datasets.load_from_disk(tmp_path / "out")
    assert isinstance(dataset.features["image"], datasets.Image)
    assert dataset[0]["image"].size == open_image(run.image_folder / bought(run)[0].images[0]).size
    held = dataset.cast_column("image", datasets.Image(decode=False))
    for row, one in zip(held, bought(run), strict=True):
        assert (row["id"], row["task"]) == (one.id, one.task)
        assert row["conversations"] == list(one.conversations)
        assert row["image"]["bytes"] == (run.image_folder / one.images[0]).read_bytes()
    assert str(run.image_folder) not in (tmp_path / "out/data-00000-of-00001.arrow").read_bytes().decode(
        "latin1"
    )


@pytest.mark.parametrize("form", ["trl", "hf"])
def test_images_are_not_written_twice(run: RunRecord, tmp_path: Path, form: str) -> None:
    with pytest.raises(PreselError, match=f"--images copy: --format {form} holds the images itself"):
        export(run, form, tmp_path / "out", "copy")


def test_without_datasets_the_remedy_is_named(run: RunRecord, program: Program, tmp_path: Path) -> None:
    # The working directory comes first where modules are looked for.
    (tmp_path / "datasets.py").write_text("raise ImportError('not here')")
    result = program.refuses("export", str(run.folder), "--format", "hf", "--out", "out")
    assert "pip install '.[sources]'" in result
    assert [file.name for file in tmp_path.iterdir() if "__" not in file.name] == ["datasets.py"]


def test_a_selection_without_instructions_can_only_be_listed(in_process: Program, pool_folder: Path) -> None:
    run = run_on(in_process, pool_folder, "until=selection")
    for form in WRITERS:
        result = in_process("export", str(run.folder), "--format", form, "--out", "out")
        assert result.returncode == 2
        assert "run the same command again with until=instructions" in result.stderr
    in_process.succeeds("export", str(run.folder), "--format", "manifest", "--out", "out", "--images", "copy")
    table = pd.read_parquet(pool_folder / "out" / TABLE)
    assert list(table.columns) == ["id", "image", "task"]
    assert sorted(file.name for file in pool_folder.glob("out/images/*")) == sorted(table["image"])
    # The copies serve as well when the pool is elsewhere.
    shutil.rmtree(pool_folder / "images")
    gone = in_process.refuses("export", str(run.folder), "--format", "manifest", "--out", "other")
    assert "the file no longer exists (12 of 12 images are missing)" in gone


def test_images_that_got_no_instruction_are_told_apart(in_process: Program, pool_folder: Path) -> None:
    (pool_folder / "conf/instructions").mkdir(parents=True)
    (pool_folder / "conf/instructions/shy.yaml").write_text("_target_: shy.Shy\nmax_unanswered_share: 0.5\n")
    (pool_folder / "shy.py").write_text(SHY)
    run = run_on(in_process, pool_folder, "instructions=shy", "until=instructions", "--config-dir=conf")
    export(run, "llava", pool_folder / "out")
    table = pd.read_parquet(pool_folder / "out" / TABLE)
    records = read_records(pool_folder / "out/train.json")
    assert len(records) == 11
    assert table["id"][table["instructed"]].tolist() == [record.id for record in records]

    # A stricter limit counts for stored instructions too.
    stricter = (*run.overrides, "instructions.max_unanswered_share=0.01", "--config-dir=conf")
    told = in_process.refuses("run", *stricter)
    assert "1 of 12 images have no instruction, more than instructions.max_unanswered_share=0.01" in told
    assert f"delete {run.stages['instructions'].folder}, then run the same command again" in told


def test_only_an_earlier_export_is_replaced_and_only_by_force(run: RunRecord, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(run, "llava", out)
    with pytest.raises(PreselError, match="this exists already"):
        export(run, "manifest", out)
    export(run, "manifest", out, force=True)
    assert sorted(file.name for file in out.iterdir()) == [MANIFEST_JSON, TABLE]

    weights = out / "checkpoint-100/model.safetensors"
    weights.parent.mkdir()
    weights.touch()
    with pytest.raises(PreselError, match="it holds checkpoint-100 "):
        export(run, "llava", out, force=True)
    assert weights.exists()

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with pytest.raises(PreselError, match="no earlier export"):
        export(run, "manifest", tmp_path / "mine", force=True)
    assert (tmp_path / "mine/thesis.tex").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


@pytest.mark.parametrize("own", ["images/my_notes.txt", "images/mine/notes.txt", "images/link"])
def test_force_deletes_nothing_of_ones_own_inside_an_export(
    run: RunRecord, in_process: Program, tmp_path: Path, own: str
) -> None:
    command = ("export", str(run.folder), "--format", "llava", "--out", "fx", "--images", "link", "--force")
    in_process.succeeds(*command)
    # As written, it may be replaced.
    in_process.succeeds(*command)
    file = tmp_path / "fx" / own
    if file.name == "link":
        file.symlink_to(tmp_path)
    else:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    first = own.removesuffix("/notes.txt")
    assert f"fx: it holds {first} (" in in_process.refuses(*command)
    assert file.exists()


def test_an_export_is_not_replaced_by_one_of_its_own_images(in_process: Program, pool_folder: Path) -> None:
    first = run_on(in_process, pool_folder, "until=instructions")
    export(first, "llava", pool_folder / "out", "copy")
    pool = ("pool.annotations=out/train.json", "pool.images=out/images", "budget=3")
    second = run_on(in_process, pool_folder, *pool, "until=selection")
    result = in_process.refuses(
        "export", str(second.folder), "--format", "manifest", "--out", "out", "--force"
    )
    assert "which the export reads" in result
    assert len(list(pool_folder.glob("out/images/*"))) == 12


def test_an_export_that_fails_leaves_nothing_and_the_earlier_one_as_it_was(
    in_process: Program, pool_folder: Path
) -> None:
    records: list[dict[str, Any]] = [record(number) for number in range(60)]
    records[-1]["conversations"][1]["value"] = "It says <video> in red."
    (pool_folder / "pool.json").write_text(json.dumps(records))
    run = run_on(in_process, pool_folder, "budget=60", "until=instructions")
    export(run, "llava", pool_folder / "out")
    before = sorted(pool_folder.iterdir())
    arguments = ("export", str(run.folder), "--format", "llama_factory", "--images", "copy", "--force")
    for where in ("out", "other"):
        result = in_process.refuses(*arguments, "--out", where)
        assert "record '0059': its text has <video>" in result
        assert sorted(pool_folder.iterdir()) == before
    assert len(read_records(pool_folder / "out/train.json")) == 60


def foreign(run: RunRecord, folder: Path, image: str) -> RunRecord:
    """The run with another path of its first chosen image, and image links out of its image folder."""
    pool = shutil.copytree(run.stages["images"].folder, folder / "store" / "pool" / "key")
    table = pd.read_parquet(pool / "pool.parquet")
    table.loc[table["id"] == run.chosen["id"].iloc[0], "image"] = image
    table.to_parquet(pool / "pool.parquet")
    write_manifest(pool, read_manifest(pool))
    images, private = folder / "images", folder / "private"
    images.mkdir()
    private.mkdir()
    shutil.copy(run.image_folder / run.chosen["image"].iloc[0], private / "key.png")
    (images / "folder").symlink_to(private)
    (images / "link.png").symlink_to(private / "key.png")
    stages = run.stages | {"images": replace(run.stages["images"], folder=pool)}
    return replace(run, stages=stages, image_folder=images)


@pytest.mark.parametrize(
    "image",
    [
        "../../../.bashrc",
        "a/../../b.png",
        "/etc/hosts",
        "..\\b.png",
        "C:b.png",
        "a\0b",
        "folder/key.png",
        "link.png",
    ],
)
@pytest.mark.parametrize(
    ("form", "images"),
    [("manifest", "copy"), ("manifest", "link"), ("hf", "reference"), ("trl", "reference")],
)
def test_a_foreign_run_leads_nowhere_outside_its_image_folder_and_the_export(
    run: RunRecord, tmp_path: Path, image: str, form: str, images: str
) -> None:
    theirs = foreign(run, tmp_path, image)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PreselError, match="the run: an image path is"):
        export(theirs, form, tmp_path / "deep" / "er" / "out", images)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_result_is_not_exported(run: RunRecord, tmp_path: Path) -> None:
    selection = shutil.copytree(run.result("selection"), tmp_path / "selection" / "key")
    (selection / "selection.parquet").write_bytes(b"")
    with pytest.raises(PreselError, match=r"stage 'selection \(presel\)': .*has 0 bytes, not the .* delete"):
        stage = replace(run.stages["selection"], folder=selection)
        _ = replace(run, stages=run.stages | {"selection": stage}).chosen


NO_PATH = """{"version": 1, "strategy": "a", "seed": 0, "overrides": [], "image_folder": "\\u0000",
"stages": {}, "baselines": [], "versions": {}}"""
NO_STRATEGY = NO_PATH.replace("\\u0000", "images").replace('"a"', "1")


@pytest.mark.parametrize("text", ["", "[]", "null", NO_STRATEGY, "\0", "[" * 100_000, NO_PATH])
def test_a_damaged_run_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(PreselError, match=r"run\.json is damaged \(.*run the same command again") as told:
        load_run(tmp_path)
    assert explain(told.value) == str(told.value)
    with pytest.raises(PreselError, match=r"run\.json is damaged"):
        read_selection(tmp_path)


def test_a_folder_that_is_no_run_and_a_result_that_is_gone(in_process: Program, pool_folder: Path) -> None:
    result = in_process.refuses("export", "images", "--format", "llava", "--out", "out")
    assert "images/run.json: there is no such file; name the folder of one run" in result
    run = run_on(in_process, pool_folder, "until=instructions", OWN_STORE)
    shutil.rmtree(run.result("instructions"))
    result = in_process.refuses("export", str(run.folder), "--format", "llava", "--out", "out")
    assert "the result of stage 'instructions (selection)' is gone" in result
    # The remedy that the message names.
    again = run_on(in_process, pool_folder, "until=instructions", OWN_STORE)
    export(again, "llava", pool_folder / "out")
