"""The store: keys, reuse, resume, locks, damage, a full disk."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.commands.store import main as store_command
from presel.errors import PreselError
from presel.storage.files import (
    atomic,
    checked,
    map_array,
    read_json,
    read_table,
    resumable_folder,
    write_array,
    write_json,
)
from presel.storage.integrity import MANIFEST, DamagedResult, check_result, result_files
from presel.storage.stage import Stage, fields_identity, upstream
from presel.storage.store import Store
from tests.helpers import RecordingReporter


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
    file: Path | None = None

    def compute(self, store: Store, folder: Path) -> None:
        raise OSError(self.code, os.strerror(self.code), str(self.file or folder / "file"))

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


def test_a_result_is_computed_once_and_then_reused(store: Store, reporter: RecordingReporter) -> None:
    stage = Sum({"a": Number(1), "b": Number(2)}, offset=10)
    assert store.load(stage) == 13
    again = RecordingReporter()
    assert Store(store.root, again).load(Sum({"a": Number(1), "b": Number(2)}, offset=10)) == 13
    assert reporter.computed == ["number", "number", "sum"]
    assert again.reused == ["number", "number", "sum"]


def test_the_key_hashes_settings_and_inputs_and_nothing_else() -> None:
    key = Sum({"a": Number(1)}).key
    assert key == Sum({"a": Number(1, workers=8)}).key
    assert key != Sum({"a": Number(2)}).key
    assert key != Sum({"a": Number(1)}, offset=1).key
    assert fields_identity(Number(3)) == {"value": 3}


def test_a_stages_subclass_of_the_same_name_has_a_key_of_its_own() -> None:
    class Other(Number):
        pass

    assert Other(1).key != Number(1).key


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


@dataclass(frozen=True)
class Measuring(Stage[None]):
    """Returns whatever it is given as its measurements."""

    name: ClassVar[str] = "measuring"

    returned: Any = field(compare=False)

    def compute(self, store: Store, folder: Path) -> Any:
        return self.returned

    def load(self, folder: Path) -> None: ...


def test_measurements_may_be_scalars_of_numpy(store: Store) -> None:
    counts = {"images": np.int64(3), "tasks": {"vqa": [np.float32(0.5), np.bool_(True)]}, "none": None}
    stage = Measuring(counts)
    store.load(stage)
    assert store.manifest(stage)["measured"] == {
        "images": 3,
        "tasks": {"vqa": [0.5, True]},
        "none": None,
    }
    # As another run finds it.
    Store(store.root).load(stage)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1], "returned a value of type list; return a dict of measurements"),
        (np.int64(3), "returned a value of type int64; return a dict of measurements"),
        (
            {"size": 1, "seen": {1}},
            "returned a measurement 'seen' that .* a value of type set.*; return text",
        ),
        (
            {"mean": np.ones(2)},
            "returned a measurement 'mean' that .* a value of type ndarray.*; return text",
        ),
        ({"when": np.datetime64("2026-01-01")}, "returned a measurement 'when' that .* a value of type date"),
        ({(1, 2): 1}, r"returned a measurement \(1, 2\) that .*keys must be str.*; return text"),
        ({"by": {np.int64(1): 1}}, "returned a measurement 'by' that .*keys must be str.*; return text"),
    ],
)
def test_measurements_that_no_manifest_can_hold_are_named(store: Store, returned: Any, said: str) -> None:
    for _ in range(2):
        with pytest.raises(PreselError, match=f"^measuring: Measuring.compute {said}"):
            store.load(Measuring(returned))
    assert not store.has(Measuring(returned))


def test_a_folder_without_a_manifest_is_unfinished(store: Store) -> None:
    folder = store.ensure(Number(5))
    (folder / MANIFEST).unlink()
    assert not store.has(Number(5))
    assert store.load(Number(5)) == 5


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS])
def test_a_full_disk_is_one_clear_error(store: Store, code: int) -> None:
    with pytest.raises(PreselError, match=r"make room or set paths\.store to another disk"):
        store.ensure(Failing(code))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ENOSPC])
def test_what_is_wrong_with_another_disk_is_not_said_of_the_stores(
    store: Store, tmp_path: Path, code: int
) -> None:
    with pytest.raises(OSError, match=re.escape(os.strerror(code))):
        store.ensure(Failing(code, tmp_path / "input.tar"))


def test_other_errors_pass_as_they_are(store: Store) -> None:
    with pytest.raises(OSError, match="No such file"):
        store.ensure(Failing(errno.ENOENT))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "another bit": lambda file: flip(file, 0, 0),
    "half a file": lambda file: os.truncate(file, file.stat().st_size // 2),
    "an empty file": lambda file: file.write_bytes(b""),
    "no file": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a link": lambda file: file.symlink_to(file.rename(file.with_suffix(".moved"))),
}


def flip(file: Path, byte: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 1 << bit
    file.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_not_read(store: Store, damage: str) -> None:
    folder = store.ensure(Number(5))
    DAMAGE[damage](folder / "number.json")
    with pytest.raises(PreselError, match="stage 'number': ") as told:
        Store(store.root, RecordingReporter()).load(Number(5))
    assert f"{folder}/number.json" in str(told.value)
    shutil.rmtree(folder)
    assert f"delete {folder}, then run the same command again" in str(told.value)
    assert Store(store.root, RecordingReporter()).load(Number(5)) == 5


def test_presence_and_size_are_checked_of_all_that_a_reused_result_rests_on(store: Store) -> None:
    total = Sum({"a": Number(1)})
    store.ensure(total)
    (store.folder(Number(1)) / "number.json").unlink()
    with pytest.raises(PreselError, match=r"number\.json is missing; delete"):
        Store(store.root, RecordingReporter()).ensure(total)
    # What is gone as a whole is not missed.
    shutil.rmtree(store.folder(Number(1)))
    assert Store(store.root, RecordingReporter()).load(total) == 1


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"files": 1}', "[" * 100_000, "\0", "\udcff"])
def test_a_manifest_that_is_none_is_reported(store: Store, text: str) -> None:
    manifest = store.ensure(Number(5)) / MANIFEST
    manifest.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(PreselError, match=r"stage 'number': .*manifest\.json is damaged, or of an earlier"):
        Store(store.root, RecordingReporter()).load(Number(5))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Store(tmp_path_factory.mktemp("store"), RecordingReporter()).ensure(Number(5))


@given(st.sampled_from([MANIFEST, "number.json"]), st.integers(0, 10_000), st.integers(0, 7))
def test_no_bit_of_a_result_can_change_unnoticed(result: Path, name: str, place: int, bit: int) -> None:
    place %= (result / name).stat().st_size
    flip(result / name, place, bit)
    with pytest.raises(DamagedResult):
        check_result(result)
    flip(result / name, place, bit)
    check_result(result)


def test_a_folder_for_work_is_gone_once_the_work_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "doctor" / "pool"
    with pytest.raises(KeyboardInterrupt), resumable_folder(folder) as working:
        (working / "part").touch()
        raise KeyboardInterrupt
    with resumable_folder(folder) as working:
        assert (working / "part").exists()
    assert not folder.exists()
    with resumable_folder(tmp_path / "other" / "pool"):
        pass
    assert not (tmp_path / "other").exists()


def test_a_folder_for_work_is_left_to_those_who_wait_for_it(tmp_path: Path) -> None:
    folder, entered = tmp_path / "store" / "doctor" / "pool", Event()

    def use() -> bool:
        with resumable_folder(folder) as working:
            entered.set()
            # Until the other one waits.
            time.sleep(0.2)
            return working.is_dir()

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(use)
        entered.wait()
        assert threads.submit(use).result()
        assert first.result()
    assert not folder.exists()


def test_logs_and_shards_are_no_part_of_a_result(store: Store) -> None:
    folder = store.ensure(Number(5))
    for name in ("shards", "wandb"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("written afterwards")
    check_result(folder)
    assert [name for name, _ in result_files(folder)] == ["number.json"]


def test_a_result_that_is_too_large_for_that_is_hashed_when_it_cannot_be_read(store: Store) -> None:
    folder = store.ensure(Number(5))
    flip(folder / "number.json", 0, 0)
    check_result(folder, hashed_bytes=1)
    with pytest.raises(DamagedResult):
        check_result(folder, hashed_bytes=2)


def test_the_store_command_finds_damage(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    def verified() -> tuple[int, str]:
        code = store_command(["verify", "--store", str(store.root)])
        return code, capsys.readouterr().out.replace("\n", "")

    sound, damaged, torn = (store.ensure(Number(value)) for value in (1, 2, 3))
    assert verified() == (0, "results: 3, problems: 0")
    flip(damaged / "number.json", 0, 0)
    (torn / MANIFEST).unlink()
    code, told = verified()
    assert code == 1
    assert told.endswith("results: 2, problems: 1, unfinished: 1 (continued by the runs that need them)")
    os.mkfifo(torn / MANIFEST)
    (sound / "notes.txt").touch()
    (sound / ".number.json.0123.tmp").touch()
    code, told = verified()
    assert code == 1
    assert f"stage 'number': {damaged}/number.json does not hold what was written" in told
    assert f"{torn}/manifest.json is damaged, or of an earlier version; delete {torn}, then run" in told
    assert f"{sound}/notes.txt is not part of the result" in told
    assert told.endswith("results: 3, problems: 4")
    assert store_command(["list", "--store", str(store.root)]) == 0
    assert store_command(["clean", "--store", str(store.root)]) == 0
    assert "1 temporary files deleted" in capsys.readouterr().out
    assert sorted(file.name for file in sound.iterdir()) == [MANIFEST, "notes.txt", "number.json"]


def test_an_error_of_writing_names_the_file_and_not_a_temporary_one(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / ("long" * 100)):
        with pytest.raises(OSError, match=re.escape(str(file))) as error, atomic(file) as temporary:
            temporary.touch()
        assert error.value.filename == str(file)


def test_what_a_killed_writer_left_is_gone_once_the_result_is_there(store: Store) -> None:
    folder = store.folder(Number(5))
    folder.mkdir(parents=True)
    (folder / ".number.json.0123.tmp").write_text("half")
    store.ensure(Number(5))
    assert sorted(file.name for file in folder.iterdir()) == [MANIFEST, "number.json"]


def test_too_little_free_space_stops_before_any_work(tmp_path: Path, reporter: RecordingReporter) -> None:
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


@pytest.mark.parametrize("text", [b"", b"PAR1", b"\x93NUMPY\x09\x00", b"\x93NUMPY\x01\x00v\x00{"])
def test_a_shard_that_cannot_be_read_is_reported(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "part-00000"
    path.write_bytes(text)
    for read in (read_table, map_array):
        with pytest.raises(
            PreselError, match=r"part-00000: no (table|array) can be read .*; delete it, then run"
        ):
            read(path)
    write_array(path, np.zeros((4, 8)))
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(PreselError, match="no array can be read"):
        map_array(path)


def test_a_shard_with_a_flipped_bit_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.npy"
    write_array(path, np.zeros(4), with_digest=True)
    written = path.read_bytes()
    assert checked(path) == path
    assert map_array(path).tolist() == [0.0] * 4
    path.write_bytes(written[:-1] + b"\x01")
    with pytest.raises(PreselError, match=r"part-00000\.npy is damaged .*; delete it, then run"):
        checked(path)
    path.write_bytes(written)
    path.with_name("part-00000.npy.sha256").unlink()
    with pytest.raises(PreselError, match="is damaged"):
        checked(path)


def test_no_link_is_written_through(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file.txt"
    victim.write_text("mine")
    path.symlink_to(victim)
    names = set()
    for _ in range(2):
        with atomic(path) as temporary:
            names.add(temporary.name)
            temporary.write_text("new")
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("mine", "new", False)
    assert len(names) == 2


@pytest.mark.parametrize(("private", "mode"), [(False, 0o640), (True, 0o600)])
def test_files_have_the_users_mode_unless_they_are_private(tmp_path: Path, private: bool, mode: int) -> None:
    before = os.umask(0o027)
    try:
        with atomic(tmp_path / "file", private=private):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def _ensure_steps(root: Path) -> None:
    Store(root, RecordingReporter()).ensure(Steps())
