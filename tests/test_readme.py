"""README names what there is, and the worked example of a strategy runs as printed."""

import shlex
from pathlib import Path

import pandas as pd

from tests.documents import blocks
from tests.helpers import TINY, Program

README = Path(__file__).parent.parent / "README.md"
PAGE = README.parent / "docs" / "how_to" / "own_strategy.md"


def texts(language: str) -> list[str]:
    return [text for name, text in blocks(PAGE) if name == language]


def test_a_strategy_of_ones_own_gets_its_row(in_process: Program, tmp_path: Path) -> None:
    for text in texts("python") + texts("yaml"):
        name = text.splitlines()[0].removeprefix("# ")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (line,) = [text for text in texts("") if "--config-dir" in text]
    in_process.succeeds(*shlex.split(line)[1:], *TINY)
    (file,) = tmp_path.glob("outputs/runs/*/*/summary.csv")
    table = pd.read_csv(file).set_index("strategy")
    assert table.loc[["typical", "random"], "requested"].tolist() == [0.15, 0.15]


def test_the_readme_names_every_group() -> None:
    text = README.read_text(encoding="utf-8")
    for folder in (README.parent / "conf").glob("*/"):
        assert f"`{folder.name}`" in text, folder
