"""README's worked example runs as printed."""

import re
import shlex
from pathlib import Path

import pandas as pd

from tests.conftest import TINY, Program

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    fenced = re.findall(
        r"^```(\w*)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return [text for name, text in fenced if name == language]


def test_a_strategy_of_ones_own_gets_its_row(program: Program, tmp_path: Path) -> None:
    for text in blocks("python") + blocks("yaml"):
        name = text.splitlines()[0].removeprefix("# ")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (line,) = [text for text in blocks("") if "--config-dir" in text]
    result = program(*shlex.split(line)[1:], *TINY)
    assert result.returncode == 0, result.stderr
    (file,) = tmp_path.glob("outputs/runs/*/*/summary.csv")
    table = pd.read_csv(file).set_index("strategy")
    assert table.loc[["typical", "random"], "requested"].tolist() == [0.15, 0.15]


def test_the_readme_names_every_option() -> None:
    text = README.read_text(encoding="utf-8")
    for file in (README.parent / "conf").glob("*/*.yaml"):
        assert f"`{file.stem}`" in text, file
