"""Messages: on the terminal, in a run's log file, while long work goes on; what is refused at once."""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL.Image import Image
from rich.progress import Progress

from presel.console import progress, run_log, show_messages
from presel.console.arguments import ArgumentParser
from presel.console.messages import LOG_FILE
from presel.console.progress import progress_line
from presel.data.images import open_image
from presel.errors import PreselError
from tests.helpers import Program, command, environment, on_folder

LOG = logging.getLogger("presel.any")


@pytest.fixture(autouse=True)
def messages_shown() -> Iterator[None]:
    yield
    show_messages()


def log_of(folder: Path) -> str:
    return (folder / LOG_FILE).read_text(encoding="utf-8")


def test_a_log_holds_what_was_shown_and_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level, warnings.showwarning
    with run_log(tmp_path):
        LOG.info("a message")
        LOG.debug("a detail")
        logging.getLogger("some.library").warning("a library's word")
        warnings.warn("a library's warning", FutureWarning, stacklevel=1)
        from presel.console import console

        console.print("a result", "of two parts")
    LOG.info("a later message")
    assert (root.handlers, root.level, warnings.showwarning) == before
    log = log_of(tmp_path)
    for level, name, text in (
        ("INFO   ", "presel.any", "a message"),
        ("DEBUG  ", "presel.any", "a detail"),
        ("WARNING", "some.library", "a library's word"),
        ("WARNING", "py.warnings", "FutureWarning: a library's warning"),
        ("INFO   ", "presel.results", "a result of two parts"),
    ):
        assert f" {level} {name}: {text}" in log
    assert "later" not in log
    captured = capsys.readouterr()
    assert captured.out == "a message\na result of two parts\na later message\n"
    assert captured.err == ""


def test_a_log_says_what_ended_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), run_log(tmp_path):
        raise ValueError("nothing \x1b[31m fits")
    with pytest.raises(KeyboardInterrupt), run_log(tmp_path):
        raise KeyboardInterrupt
    log = log_of(tmp_path)
    assert r"ERROR   presel: ValueError: nothing \x1b[31m fits" in log
    assert log.count("Traceback (most recent call last):") == 1
    assert log.endswith("ERROR   presel: KeyboardInterrupt: \n")
    assert capsys.readouterr() == ("", "")


def test_secrets_and_control_characters_stay_out_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-0123456789")
    monkeypatch.setenv("SHORT_TOKEN", "no")
    with run_log(tmp_path):
        LOG.info("the server says: sk-0123456789 is no key\x1b]0;pwn\x07")
    assert r"the server says: [secret] is no key\x1b]0;pwn\x07" in log_of(tmp_path)


@pytest.mark.parametrize(
    ("option", "shown"), [("-q", ["a warning"]), ("-v", ["a detail", "a message", "a warning", "a library"])]
)
def test_options_decide_how_much_is_shown(
    option: str, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ArgumentParser().parse_args([option])
    LOG.debug("a detail")
    LOG.info("a message")
    LOG.warning("a warning")
    if option == "-v":
        logging.getLogger("library").warning("a library")
    assert [line.removeprefix("… ") for line in capsys.readouterr().out.splitlines()] == shown


def test_a_line_says_how_far_long_work_has_come() -> None:
    seconds = 0.0
    with Progress(disable=True, get_time=lambda: seconds) as bar:
        bar.add_task("measuring", total=4000)
        (task,) = bar.tasks
        assert progress_line(task) == "  measuring: 0 of 4,000 (0 %)"
        seconds = 90
        bar.advance(task.id, 1000)
        assert progress_line(task) == "  measuring: 1,000 of 4,000 (25 %), 0:04:30 left"


def test_lines_come_while_a_unit_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    shown = ""
    with progress("measuring", 2, line_every_s=0.001) as advance:
        advance(1)
        while "measuring: 1 of 2 (50 %), 0:00:00 left\n" not in shown:
            shown += capsys.readouterr().out


def test_a_run_logs_to_its_folder_and_takes_an_option(
    in_process: Program, pool_folder: Path, tmp_path: Path
) -> None:
    result = in_process.succeeds("run", "-q", *on_folder(pool_folder), "until=selection", "strategy=random")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["selection", "run,", "to"]
    (log,) = tmp_path.glob("outputs/runs/*/*/run.log")
    for said in (
        "INFO    presel.console.progress: ✓ pool ",
        f"presel.results: {result.stdout.splitlines()[0]}",
    ):
        assert said in log.read_text()


def test_every_job_of_a_sweep_has_its_log_and_reports_its_failure(
    in_process: Program, pool_folder: Path, tmp_path: Path
) -> None:
    settings = (*on_folder(pool_folder), "until=selection", "strategy=random")
    result = in_process("run", "-m", *settings, "budget=61,30.5")
    assert result.returncode == 2
    first, second, last = result.stderr.splitlines()
    assert first.startswith("presel: job 0 failed: budget=61 is above")
    assert second.startswith("presel: job 1 failed: budget is 30.5")
    assert last.startswith("presel: error: budget=61 is above")
    logs = sorted(tmp_path.glob("outputs/runs/*/*/*/run.log"))
    assert ["budget=61 is above" in log.read_text() for log in logs] == [True, False]
    same = in_process("run", "-m", *settings, "budget=61", "seed=0,1")
    assert [line.split(":")[1] for line in same.stderr.splitlines()] == [" job 0 failed", " error"]


def test_help_and_mistyped_commands(in_process: Program) -> None:
    for arguments in (("--help",), ()):
        assert "exit codes:" in in_process.succeeds(*arguments).stdout
    assert in_process.succeeds("--version").stdout == "presel 0.1.0\n"
    assert "no command 'rnu' (did you mean 'run'?)" in in_process.refuses("rnu")


def open_all(images: list[Path]) -> list[Image]:
    return [open_image(image) for image in images]


def run_with(tmp_path: Path, output: Any, *arguments: str, **variables: str) -> tuple[int, str]:
    """Runs a command whose standard output is a file or a pipe; its exit code and its errors."""
    ended = subprocess.run(
        command(*arguments),
        cwd=tmp_path,
        env=environment(**variables),
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    return ended.returncode, ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_output_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        code, errors = run_with(tmp_path, full, "run", "--help")
    assert (code, errors.count("\n")) == (2, 1)
    assert "cannot be written (No space left on device); make room" in errors


def test_a_reader_that_ends_is_no_finding(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert run_with(tmp_path, writing, "run", "--help") == (141, "")
    os.close(writing)


def test_an_encoding_that_lacks_a_character_stops_nothing(tmp_path: Path) -> None:
    settings = ("pool.size=60", "until=selection", "strategy=random", "executor.workers=0")
    with (tmp_path / "output").open("w") as file:
        assert run_with(tmp_path, file, "run", *settings, PYTHONIOENCODING="latin-1") == (0, "")
    assert r"\u2713 pool" in (tmp_path / "output").read_text(encoding="latin-1")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_process_is_its_own_sentence(workers: int) -> None:
    from presel.models.prefetch import prefetched

    with pytest.raises(
        PreselError, match=r"^/nowhere\.png: missing; replace the file or remove its records$"
    ):
        list(prefetched([[Path("/nowhere.png")]], open_all, workers))


# Names and types are refused before what takes seconds to import.
SLOW = ("torch", "transformers", "pytorch_lightning", "peft", "sklearn", "scipy", "matplotlib", "faiss")


@pytest.mark.parametrize(
    "arguments", [["run", "lvlm.max_length=x"], ["run", "strategy=presle"], ["rnu"]], ids=" ".join
)
def test_mistakes_are_refused_before_slow_imports(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from presel.cli import main; code = main(sys.argv[1:]); "
        f"print(code, [name for name in {SLOW} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.stdout == "2 []\n"
    assert ran.stderr.startswith("presel: error: ")
    assert ran.stderr.count("\n") == 1
