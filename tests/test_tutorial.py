"""The tutorial runs as written, against a server on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.documents import blocks
from tests.generation_server import Plan, running
from tests.helpers import environment

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"
KEY = "sk-of-the-tutorial"


@pytest.mark.slow
def test_the_tutorial_leads_from_a_folder_of_pictures_to_a_tuned_model(tmp_path: Path) -> None:
    folder = tmp_path / "tutorial"
    folder.mkdir()
    program = f'presel() {{ {sys.executable} -m presel "$@"; }}; python() {{ {sys.executable} "$@"; }}\n'
    exports, *steps = blocks(TUTORIAL)
    with running(tmp_path, Plan(key=KEY)) as server:
        told = exports[1].replace("http://127.0.0.1:8000/v1", server.url).replace("none-needed-here", KEY)
        said = [_run(language, text, program + told, folder) for language, text in steps]
        asked = [request.image for request in server.seen()]
    assert len(asked) == len(set(asked)), "an image was asked about twice"
    run = json.loads((folder / "outputs/runs/photos/run.json").read_text())
    train = json.loads((Path(run["stages"]["instructions"]["folder"]) / "train.json").read_text())
    assert len(train) == 60
    exported = pd.read_parquet(folder / "for_training" / "selection_manifest.parquet")
    assert set(exported["id"]) == {record["id"] for record in train}
    assert any("parameters" in text for text in said)
    written = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    assert not any(KEY.encode() in content for content in written)
    assert not any(KEY in text for text in said)


def _run(language: str, text: str, before: str, folder: Path) -> str:
    """Does what a reader of the block would do, and gives what came of it."""
    if language == "yaml":
        # The first line is Hydra's.
        file = folder / text.splitlines()[1].removeprefix("# ")
        file.parent.mkdir(parents=True)
        file.write_text(text)
        return ""
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-ec", before + text]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
