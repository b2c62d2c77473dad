"""The example in the documentation runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "select_from_python.md"


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert len(names["chosen"]) == len(names["weighted"]) == 180
    assert set(names["chosen"]) < set(names["more"])
    assert len(names["picks"]) == 60
    assert capsys.readouterr().out.startswith("180 [")


def test_the_short_way_takes_ten_lines() -> None:
    block = re.findall(r"## Ten lines\n\n```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[0]
    assert len([line for line in block.splitlines() if line]) <= 10
