"""The documentation's notebooks with their outputs; `python -m tests.notebooks` computes these anew."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs").glob("*.ipynb"))


def read(file: Path) -> NotebookNode:
    return nbformat.read(file, as_version=4)


def executed(file: Path) -> NotebookNode:
    """The notebook with the outputs of a new kernel; an error in a cell is raised."""
    notebook = read(file)
    NotebookClient(notebook, timeout=600, record_timing=False).execute()
    # The version of the Python that it ran on.
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    for file in NOTEBOOKS:
        nbformat.write(executed(file), file)
