"""What people are shown holds no command, whoever wrote it: to terminals, spreadsheets, Markdown."""

import csv
import logging
import sys
from io import StringIO
from pathlib import Path
from unicodedata import category

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from presel.cli import main
from presel.console import console, print_error, progress, show_messages
from presel.console.escaping import csv_text, markdown_text, visible
from presel.doctor.findings import Finding
from presel.doctor.printing import print_findings
from presel.report.summary import print_summary, write_summary

ANY_TEXT = st.text(st.characters(codec="utf-8")) | st.text("\x1b\r\n\t=+-@\u202e\u200b|<>`[]()\\'\"a ＝;,")
HOSTILE = "\x1b]0;pwn\x07 [/nope] [red]:smile:\r\n\u202egpj.exe \x9b31m"
SHOWN = r"\x1b]0;pwn\x07 [/nope] [red]:smile:\r\n\u202egpj.exe \x9b31m"


def commands_in(text: str) -> set[str]:
    return {character for character in text if category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


@given(ANY_TEXT | st.text())
def test_what_is_visible_commands_nothing(text: str) -> None:
    assert not commands_in(visible(text))
    assert visible(visible(text)) == visible(text)


@given(st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp"))))
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text


@given(st.lists(ANY_TEXT, min_size=2, max_size=2, unique=True), ANY_TEXT, st.floats(allow_nan=False))
def test_csv_holds_no_formula(names: list[str], text: str, number: float) -> None:
    written = csv_text(pd.DataFrame([[text, number]], columns=names))
    assert commands_in(written) <= {"\n"}
    header, row = csv.reader(StringIO(written))
    assert float(row[1]) == number
    for cell, original in zip([*header, row[0]], [*names, text], strict=True):
        assert not cell.lstrip().startswith(tuple("=+-@＝"))
        assert cell.removeprefix("'") == visible(original).removeprefix("'")
    # Nothing but numbers stands outside quotes, whatever the delimiter is taken for.
    assert written.splitlines()[1].endswith(f'",{row[1]}')


@given(st.lists(ANY_TEXT, min_size=1))
def test_markdown_holds_no_html_and_no_further_cells(names: list[str]) -> None:
    for name in names:
        text = markdown_text(name)
        assert not commands_in(text)
        assert not set("<>") & set(text)
        bare = text.replace("\\\\", "")
        assert all(bare.count(mark) == bare.count(f"\\{mark}") for mark in "|`")
        assert "](" not in text


def test_the_console_shows_text_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    for printed in (HOSTILE, Path(HOSTILE), Text(HOSTILE, "bold"), table):
        console.print(printed)
        out = capsys.readouterr().out
        assert commands_in(out) == {"\n"}
        assert "[/nope] [red]:smile:" in out
        assert "…" not in out
    show_messages()
    logging.getLogger("presel.any").warning(HOSTILE)
    assert capsys.readouterr().out == f"… {SHOWN}\n"
    print_error(HOSTILE)
    assert capsys.readouterr().err == f"presel: {SHOWN}\n"
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr(console, "is_interactive", True)
    with progress(HOSTILE, 2) as advance:
        advance(1)
    out = capsys.readouterr().out
    assert SHOWN in out
    assert not {"\x07", "\x9b", "\u202e"} & set(out)


def test_tables_of_results_show_names_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"=cmd|'/C calc'!A0": 0.5, "[red]": 0.25}
    rows = [{"strategy": "[/nope]", **scores, "mean": 0.375, "requested": 0.5, "seconds": None}]
    print_summary(rows)
    out = capsys.readouterr().out
    assert "[/nope]" in out
    assert "=cmd|'/C calc'!A0" in out
    assert "[red]" in out
    write_summary(tmp_path / "summary.csv", rows)
    table = pd.read_csv(tmp_path / "summary.csv")
    assert list(table)[:3] == ["strategy", "'=cmd|'/C calc'!A0", "[red]"]
    assert table["mean"].tolist() == [0.375]


def test_the_doctor_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings([Finding("warning", "[/nope]", HOSTILE, detail=HOSTILE)])
    assert capsys.readouterr().out == f"warning  [/nope]: 1\n           {SHOWN}: {SHOWN}\n"


def test_errors_command_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    assert main(["diff", str(tmp_path / f"a{HOSTILE}"), str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert commands_in(told) == {"\n"}
    for unusable in (["diff", "a", "b", HOSTILE], ["store", "list", "--store", HOSTILE]):
        with pytest.raises(SystemExit):
            main(unusable)
        assert SHOWN in capsys.readouterr().err
    assert main(["run", "-x", HOSTILE]) == 2
    assert "\x1b" not in capsys.readouterr().err
    # An error that nobody foresaw.
    sys.excepthook(ValueError, ValueError("first\nsecond \x1b]0;pwn"), None)
    assert capsys.readouterr().err.splitlines() == ["ValueError: first", r"second \x1b]0;pwn", ""]
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "presel: interrupted\n"
