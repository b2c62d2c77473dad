"""The table of scores: no terminal cuts a number, and a sweep counts its own jobs only."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presel.console.terminal import PlainConsole
from presel.report import summary
from presel.storage.run_folder import finished_jobs
from tests.helpers import TINY, command, environment
from tests.runs import recorded

BENCHMARKS = ["box", "caption", "choice", "count", "describe", "dialog", "math", "read", "short", "yesno"]
LONG = "presel tau.value=0.3426976246682511 strategy.beta={}"


def rows(*names: str) -> list[dict[str, Any]]:
    """Each row has scores of its own."""
    return [
        {
            "strategy": name,
            **{benchmark: (at * 10 + number) / 1000 for number, benchmark in enumerate(BENCHMARKS)},
            "mean": 0.5,
            "relative": 0.983,
            "requested": 0.15,
            "seconds": 12345.0,
        }
        for at, name in enumerate(names)
    ]


def printed(shown: list[dict[str, Any]], width: int | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a terminal of some width shows, or a file without one."""
    reader, writer = pty.openpty() if width else os.pipe()
    with os.fdopen(writer, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(summary, "console", PlainConsole(file=stream, width=width or 160, color_system=None))
        summary.print_summary(shown)
    try:
        return os.read(reader, 1_000_000).decode().splitlines()
    finally:
        os.close(reader)


NARROW = [
    ("base", "most frequent", "random"),
    ("base", LONG.format(1), LONG.format(2)),
    ("base", *(LONG.format(number) for number in range(9))),
]


@pytest.mark.parametrize("names", NARROW)
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_terminal_shows_every_number_that_it_shows(
    names: tuple[str, ...], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = rows(*names)
    lines = printed(shown, width, monkeypatch)
    *table, told = lines
    text = "\n".join(lines)
    assert "…" not in text
    assert max(map(len, table)) <= width
    numbers = re.findall(r"(?<=\s)\d+\.\d(?=\s)", text)
    scores = [f"{100 * row[benchmark]:.1f}" for row in shown for benchmark in BENCHMARKS]
    totals = ["50.0", "98.3", "15.0"] * len(names)
    if "10 benchmarks do not fit this terminal; summary.csv" in told:
        assert sorted(numbers) == sorted(totals)
        assert len(names) > 2
    else:
        assert sorted(numbers) == sorted(totals + scores)
    assert text.count("12345 s") == len(names)


def test_a_run_on_an_ordinary_terminal_has_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(rows(*NARROW[0]), 80, monkeypatch)
    assert [line.split() for line in lines if line.split()[:1] == ["yesno"]] == [
        ["yesno", "0.9", "1.9", "2.9"]
    ]


@pytest.mark.parametrize("names", NARROW)
def test_a_file_has_each_setting_in_one_row(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(rows(*names), None, monkeypatch)
    for at, name in enumerate(names):
        (line,) = (line for line in lines if line.startswith(f" {name} "))
        scores = [f"{at + number / 10:.1f}" for number in range(10)]
        assert line.removeprefix(f" {name} ").split() == [*scores, "50.0", "98.3", "15.0", "12345", "s"]


def test_numbers_in_names_are_shortened_unless_that_makes_two_names_one() -> None:
    assert summary.shortened_names(
        [LONG.format("[0.123456789,2.5]"), "a b=/x/0.123456789", "c=1.50 (d=-1e-7)"]
    ) == [
        "presel tau.value=0.342698 strategy.beta=[0.123457,2.5]",
        "a b=/x/0.123456789",
        "c=1.50 (d=-1e-7)",
    ]
    alike = ["a=0.12345678", "a=0.12345679"]
    assert summary.shortened_names(alike) == alike
    assert summary.shortened_names(["a=1", "a=1"]) == ["a=1", "a=1"]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_shortened_number_is_nearly_the_same(number: float) -> None:
    (name,) = summary.shortened_names([f"a={number}"])
    assert float(name.removeprefix("a=")) == pytest.approx(number, rel=1e-5)


def test_the_program_fits_its_terminal(tmp_path: Path, shared_store: Path) -> None:
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    run = command("run", "strategy=random", f"paths.store={shared_store}", *TINY)
    with subprocess.Popen(run, cwd=tmp_path, env=environment(), stdout=writer, stderr=writer) as process:
        os.close(writer)
        out = b""
        while True:
            try:
                out += os.read(reader, 65536)
            except OSError:
                break
    os.close(reader)
    assert process.returncode == 0
    table = out.decode().partition("Scores (%)")[2].partition("selection")[0]
    assert "…" not in table
    saved = pd.read_csv(next(tmp_path.glob("outputs/runs/*/*/summary.csv"))).set_index("strategy")
    for name in (*BENCHMARKS, "mean"):
        (line,) = (line for line in table.splitlines() if line.split()[:1] == [name])
        assert line.split()[1:] == [f"{100 * score:.1f}" for score in saved[name]]
    # The log is no terminal.
    (log,) = tmp_path.glob("outputs/runs/*/*/run.log")
    assert re.search(r"presel\.results:  random( +\d+\.\d){11} ", log.read_text())


def test_jobs_of_an_earlier_sweep_in_the_folder_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def finish(job: int, score: float, *overrides: str) -> None:
        run = recorded(tmp_path / str(job), "random", scores={"vqa": score}, overrides=list(overrides))
        run.write()

    for job in range(12):
        finish(job, job / 100, f"seed={job}")
    earlier = finished_jobs(tmp_path)
    # One that is finished again, with the same scores, is a job of this sweep.
    for job in (0, 1, 10):
        finish(job, job / 100, f"seed={job}")
    summary.summarize_sweep(tmp_path, earlier)
    names = ["random seed=0", "random seed=1", "random seed=10"]
    assert pd.read_csv(tmp_path / "summary.csv")["strategy"].tolist() == names
    assert "seed=2" not in capsys.readouterr().out
    # One of which nothing ended leaves all as it is.
    summary.summarize_sweep(tmp_path, finished_jobs(tmp_path))
    assert pd.read_csv(tmp_path / "summary.csv")["strategy"].tolist() == names
