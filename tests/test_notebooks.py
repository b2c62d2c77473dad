"""The documentation's notebooks run, and hold small outputs of such a run."""

from pathlib import Path

import pytest
from nbformat import NotebookNode

from tests.notebooks import NOTEBOOKS, executed, read


def kinds(notebook: NotebookNode) -> list[list[str]]:
    """What each cell of code shows: names of streams, types of data."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        [" ".join(sorted(output.get("data", {}))) or output.name for output in cell.outputs] for cell in cells
    ]


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_and_shows_what_it_did(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where notebooks make the folder that they work in.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert kinds(executed(file)) == kinds(read(file))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_holds_small_outputs_of_no_particular_machine(file: Path) -> None:
    shown = kinds(read(file))
    assert any(shown) and not any("stderr" in cell for cell in shown)
    assert file.stat().st_size < 60_000
    text = file.read_text(encoding="utf-8")
    assert "/tmp/" not in text and str(Path.home()) not in text
    assert "iopub" not in text, "outputs are renewed by `python -m tests.notebooks`, which records no times"
