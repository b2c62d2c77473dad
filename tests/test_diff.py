"""`presel diff` on selections of real runs, and on files that are none."""

import re
from pathlib import Path

import pandas as pd
import pytest

from presel.commands.diff import by_task, joined, read_selection
from presel.commands.diff import main as diff
from presel.errors import PreselError
from tests.helpers import TINY, Program


def selection(*chosen: str, tasks: str = "aaabb") -> pd.DataFrame:
    ids = [str(number) for number in range(len(tasks))]
    return pd.DataFrame({"id": ids, "task": list(tasks), "selected": [name in chosen for name in ids]})


def test_what_two_selections_share() -> None:
    both = joined(selection("0", "1", "4"), selection("1", "3", "4").sample(frac=1, random_state=0))
    counts = by_task(both)
    assert counts.loc["a"].tolist() == [3, 2, 1, 1]
    assert counts.loc["b"].tolist() == [2, 1, 2, 1]
    assert counts.index.tolist() == ["a", "b"]
    assert both.loc[both["first"] != both["second"], "id"].tolist() == ["0", "3"]


def test_a_task_may_be_named_as_the_totals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = selection("0", "1").assign(task=["all", "all", "all", "b", "b"])
    table.to_parquet(tmp_path / "selection.parquet")
    assert diff([str(tmp_path), str(tmp_path)]) == 0
    rows = [re.findall(r"[\w.–]+", line) for line in capsys.readouterr().out.splitlines() if " all " in line]
    assert rows == [["all", "3", "2", "2", "2", "100.0"], ["all", "5", "2", "2", "2", "100.0"]]


def test_selections_of_different_pools_are_refused() -> None:
    with pytest.raises(PreselError, match="image '5' of task 'b' is only in the second"):
        joined(selection(), selection(tasks="aaabbb"))
    with pytest.raises(PreselError, match="different pools: image '2' of task 'a' is only in the first"):
        joined(selection(), selection(tasks="aabbb"))


@pytest.mark.parametrize("ids", [[1, 2], ["1", "1"], ["1", None]])
def test_ids_that_do_not_tell_images_apart_are_refused(tmp_path: Path, ids: list[object]) -> None:
    selection(tasks="ab").assign(id=ids).to_parquet(tmp_path / "selection.parquet")
    with pytest.raises(PreselError, match=r"selection\.parquet: its column 'id' does not hold one name"):
        read_selection(tmp_path)


def test_diff_of_two_runs(in_process: Program, tmp_path: Path) -> None:
    in_process.succeeds("run", "-m", "strategy=random", "seed=0,1", "until=selection", *TINY)
    folders = sorted(file.parent for file in tmp_path.glob("outputs/runs/*/*/*/run.json"))
    differs = in_process("diff", *map(str, folders), "--out", "apart.csv")
    assert differs.returncode == 1, differs.stderr
    apart = pd.read_csv(tmp_path / "apart.csv")
    first, second = (set(table["id"][table["selected"]]) for table in map(read_selection, folders))
    assert set(apart["id"]) == first ^ second
    assert f"{len(apart)} images are in one selection only" in differs.stdout
    in_process.succeeds("diff", str(folders[0]), str(folders[0]))


def test_a_file_that_is_no_selection_is_named(in_process: Program, tmp_path: Path) -> None:
    (tmp_path / "selection.parquet").write_text("no")
    for path in (tmp_path, tmp_path / "selection.parquet"):
        result = in_process.refuses("diff", str(path), str(path))
        assert "no selection can be read from it" in result
    missing = str(tmp_path / "none")
    assert f"{missing}: there is no such file" in in_process.refuses("diff", missing, missing)
