"""Runs whose `outputs` were moved or copied: runs and store together, apart, or beside other results."""

import json
import shutil
from pathlib import Path

import pytest

import presel
from tests.helpers import OWN_STORE, TINY, Program, last_run, on_folder

RANDOM = (*TINY, OWN_STORE, "strategy=random")


def folders(run: presel.RunRecord) -> list[Path]:
    return [stage.folder for stage in run.stages.values()]


def move(run: presel.RunRecord, outputs: Path, to: Path) -> Path:
    """Moves all outputs, and gives the run's new folder."""
    to.parent.mkdir(parents=True)
    outputs.rename(to)
    return to / run.folder.relative_to(outputs)


def test_every_command_reads_moved_outputs(
    in_process: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process.succeeds("run", *TINY, OWN_STORE, "strategy=full", "pool.size=60")
    before = last_run(tmp_path)
    assert before.full_scores == before.scores
    folder = move(before, tmp_path / "outputs", tmp_path / "other" / "place")
    moved = presel.load_run(folder)
    moved.check(*moved.stages)
    assert all(one.is_relative_to(tmp_path / "other" / "place" / "store") for one in folders(moved))
    assert moved.image_folder.is_dir()
    assert moved.full_scores == moved.scores == before.scores

    run = str(folder.relative_to(tmp_path))
    in_process.succeeds("report", run, "--no-map")
    in_process.succeeds("view", run, "--no-open")
    in_process.succeeds("diff", run, run)
    in_process.succeeds("export", run, "--format", "llava", "--out", "exported", "--images", "copy")
    # Through a link, and from within.
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    monkeypatch.chdir(folder)
    for named in (tmp_path / "link", Path()):
        assert folders(presel.load_run(named)) == folders(moved)


def test_a_copy_reads_the_original_where_that_is(in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("run", *RANDOM, "until=selection")
    run = last_run(tmp_path)
    copied = shutil.copytree(run.folder, tmp_path / "copied")
    assert folders(presel.load_run(copied)) == folders(run)


def test_nothing_else_is_taken_for_a_result_that_is_gone(in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("run", *RANDOM, "until=selection")
    run = last_run(tmp_path)
    gone = run.stages["selection"].folder
    folder = move(run, tmp_path / "outputs", tmp_path / "other" / "place")
    new = tmp_path / "other" / "place" / gone.relative_to(tmp_path / "outputs")
    # Of other settings, and where the key says so, but changed.
    new.rename(new.with_name("0123456789abcdef"))
    remedy = f"is gone from {gone}; if the store was moved or copied, do the same with the run"
    with pytest.raises(presel.PreselError, match=remedy):
        _ = presel.load_run(folder).selection
    new.with_name("0123456789abcdef").rename(new)
    manifest = json.loads((new / "manifest.json").read_text())
    (new / "manifest.json").write_text(json.dumps(manifest | {"key": "0123456789abcdef"}))
    with pytest.raises(presel.PreselError, match=r"manifest\.json was changed"):
        _ = presel.load_run(folder).selection


def test_a_record_that_does_not_say_where_it_was_written(in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("run", *RANDOM, "until=selection")
    run = last_run(tmp_path)
    file = run.folder / "run.json"
    record = json.loads(file.read_text())
    assert record.pop("folder") == str(run.folder)
    file.write_text(json.dumps(record))
    assert presel.load_run(run.folder) == run
    folder = move(run, tmp_path / "outputs", tmp_path / "other" / "place")
    with pytest.raises(presel.PreselError, match="if the store was moved or copied"):
        _ = presel.load_run(folder).selection
    (folder / "run.json").write_text(json.dumps(record | {"folder": 5}))
    with pytest.raises(presel.PreselError, match=r"run\.json is damaged \(folder: "):
        presel.load_run(folder)


def test_images_of_ones_own_stay_where_they_are(in_process: Program, pool_folder: Path) -> None:
    in_process.succeeds("run", *on_folder(pool_folder), OWN_STORE, "strategy=random", "until=selection")
    run = last_run(pool_folder)
    folder = move(run, pool_folder / "outputs", pool_folder / "other" / "place")
    moved = presel.load_run(folder)
    assert moved.image_folder == run.image_folder == pool_folder / "images"
    assert moved.chosen_files
