"""The store: keys, reuse, resume, locks, a full disk."""

import errno
import importlib
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from presel.errors import PreselError
from presel.files import atomic, read_json, write_json
from presel.integrity import MANIFEST
from presel.store import Stage, Store, fields_identity, identity, upstream
from tests.conftest import SilentReporter


@dataclass(frozen=True)
class Number(Stage[int]):
    name: ClassVar[str] = "number"

    value: int
    workers: int = field(default=1, compare=False)

    def compute(self, store: Store, folder: Path) -> dict[str, int]:
        write_json(folder / "number.json", self.value)
        return {"digits": len(str(self.value))}

    def load(self, folder: Path) -> int:
        return int(read_json(folder / "number.json"))


@dataclass(frozen=True)
class Sum(Stage[int]):
    name: ClassVar[str] = "sum"

    terms: dict[str, Number]
    offset: int = 0

    def compute(self, store: Store, folder: Path) -> None:
        write_json(folder / "sum.json", self.offset + sum(store.load(term) for term in self.terms.values()))

    def load(self, folder: Path) -> int:
        return int(read_json(folder / "sum.json"))


@dataclass(frozen=True)
class Failing(Stage[None]):
    name: ClassVar[str] = "failing"

    code: int

    def compute(self, store: Store, folder: Path) -> None:
        raise OSError(self.code, os.strerror(self.code), str(folder / "file"))

    def load(self, folder: Path) -> None:
        return None


@dataclass(frozen=True)
class Steps(Stage[list[int]]):
    """Writes one file a step and sleeps in between."""

    name: ClassVar[str] = "steps"

    def compute(self, store: Store, folder: Path) -> None:
        for step in range(20):
            if not (folder / f"{step}.json").exists():
                write_json(folder / f"{step}.json", os.getpid())
                time.sleep(0.1)

    def load(self, folder: Path) -> list[int]:
        return [read_json(folder / f"{step}.json") for step in range(20)]


def test_a_result_is_computed_once_and_then_reused(store: Store, reporter: SilentReporter) -> None:
    stage = Sum({"a": Number(1), "b": Number(2)}, offset=10)
    assert store.load(stage) == 13
    again = SilentReporter()
    assert Store(store.root, again).load(Sum({"a": Number(1), "b": Number(2)}, offset=10)) == 13
    assert reporter.computed == ["number", "number", "sum"]
    assert again.reused == ["number", "number", "sum"]


def test_the_key_hashes_settings_and_inputs_and_nothing_else() -> None:
    key = Sum({"a": Number(1)}).key
    assert key == Sum({"a": Number(1, workers=8)}).key
    assert key != Sum({"a": Number(2)}).key
    assert key != Sum({"a": Number(1)}, offset=1).key
    assert fields_identity(Number(3)) == {"value": 3}


def test_a_class_from_elsewhere_counts_with_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    keys = set()
    for name, text in (("one", "head"), ("other", "head"), ("one", "tail")):
        (tmp_path / f"{name}.py").write_text(
            "from dataclasses import dataclass\n@dataclass\nclass Mine:\n    size: int = 1\n"
            f"    def select(self, table):\n        return table.{text}(self.size)\n"
        )
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        keys.add(str(identity(importlib.import_module(name).Mine())))
    assert len(keys) == 3


def test_upstream_lists_inputs_first_and_each_once() -> None:
    shared = Number(1)
    assert [step.name for step in upstream(Sum({"a": shared, "b": shared}))] == ["number", "sum"]


def test_the_manifest_says_what_the_result_rests_on(store: Store) -> None:
    stage = Sum({"a": Number(12)}, offset=1)
    store.ensure(stage)
    manifest = store.manifest(stage)
    assert manifest["inputs"] == {f"number/{Number(12).key}": "number"}
    assert manifest["settings"]["offset"] == 1
    assert manifest["versions"]["python"]
    assert store.manifest(Number(12))["measured"] == {"digits": 2}


def test_a_folder_without_a_manifest_is_unfinished(store: Store) -> None:
    folder = store.ensure(Number(5))
    (folder / MANIFEST).unlink()
    assert not store.has(Number(5))
    assert store.load(Number(5)) == 5


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_clear_error(store: Store, code: int) -> None:
    with pytest.raises(PreselError, match=r"make room or set paths\.store to another disk"):
        store.ensure(Failing(code))


def test_other_errors_pass_as_they_are(store: Store) -> None:
    with pytest.raises(OSError, match="No such file"):
        store.ensure(Failing(errno.ENOENT))


def test_too_little_free_space_stops_before_any_work(tmp_path: Path, reporter: SilentReporter) -> None:
    with pytest.raises(PreselError, match=r"paths\.min_free_gb asks for 1e\+09"):
        Store(tmp_path, reporter, min_free_gb=1e9).ensure(Number(1))
    assert not reporter.computed


def test_a_killed_stage_goes_on_where_it_stopped(store: Store) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_ensure_steps, args=(store.root,))
    process.start()
    folder = store.folder(Steps())
    while not (folder / "3.json").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    writers = store.load(Steps())
    assert writers[0] == process.pid
    assert writers[-1] == os.getpid()


def test_two_processes_share_one_computation(store: Store) -> None:
    processes = [
        multiprocessing.get_context("spawn").Process(target=_ensure_steps, args=(store.root,))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(set(store.load(Steps()))) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_holds_names_of_files_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xfcro/\xc3\xbc\\")
    write_json(tmp_path / "run.json", {name: name})
    assert read_json(tmp_path / "run.json") == {name: name}


def _ensure_steps(root: Path) -> None:
    Store(root, SilentReporter()).ensure(Steps())
