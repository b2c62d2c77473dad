"""What many test files share: the command line in a folder, what it left there, and small pools."""

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pandas as pd

from presel.data.llava import LlavaFiles, Record, TaskNamer, TaskRule
from presel.runs import RunRecord, load_run

# Small enough that a whole run takes seconds, large enough that every task has a reference set.
TINY = ("pool.size=200", "evaluation.size=4", "executor.workers=0", "evaluation.max_new_tokens=8")
# A run of a test that counts, damages or times what is computed; all others share the session's store.
OWN_STORE = "paths.store=outputs/store"

Result = subprocess.CompletedProcess[str]


class Program(ABC):
    """The command line in a folder; a run uses the session's store, unless it names another."""

    def __init__(self, folder: Path, shared_store: Path) -> None:
        self.folder = folder
        self._shared_store = shared_store

    def __call__(self, *arguments: str, **extra: str) -> Result:
        """Runs a command.

        Args:
            arguments: Its arguments.
            extra: Further environment variables.
        """
        if arguments[:1] == ("run",) and not any(one.startswith("paths.store=") for one in arguments):
            # Beside the other settings, because Hydra refuses some on both sides of a flag.
            at = next(
                (at for at, one in enumerate(arguments) if "=" in one and one[0] != "-"), len(arguments)
            )
            arguments = (*arguments[:at], f"paths.store={self._shared_store}", *arguments[at:])
        return self._call(arguments, extra)

    def succeeds(self, *arguments: str, **extra: str) -> Result:
        """Runs a command that must end well."""
        result = self(*arguments, **extra)
        assert result.returncode == 0, result.stdout + result.stderr
        return result

    def refuses(self, *arguments: str, **extra: str) -> str:
        """Runs a command that must end with one sentence, and gives that."""
        return error_of(self(*arguments, **extra))

    @abstractmethod
    def _call(self, arguments: tuple[str, ...], extra: dict[str, str]) -> Result: ...


class InSubprocess(Program):
    """The program as users start it, which takes seconds to import."""

    def _call(self, arguments: tuple[str, ...], extra: dict[str, str]) -> Result:
        return subprocess.run(
            command(*arguments),
            cwd=self.folder,
            env=environment(**extra),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "presel", *arguments]


def environment(**extra: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | extra


def error_of(result: Result) -> str:
    """The error of a command that ended with one sentence."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("presel: error: ")
    return last


def refused(result: Result, *words: str) -> None:
    """A run was refused before any training, by a sentence that holds these words."""
    error = error_of(result)
    for word in words:
        assert word in error
    assert "model (" not in result.stdout


def stage_lines(output: str) -> dict[str, str]:
    """What the stage lines say: label → `reused` or `computed`."""
    found = {}
    for line in output.splitlines():
        if line.startswith("✓"):
            words = line[2:].split()
            reused = words[-2] == "reused"
            found[" ".join(words[: -2 if reused else -3])] = "reused" if reused else "computed"
    return found


def runs(folder: Path) -> list[RunRecord]:
    """All finished runs in a folder, oldest first."""
    files = folder.glob("outputs/runs/**/run.json")
    return [load_run(file.parent) for file in sorted(files, key=lambda file: file.stat().st_mtime_ns)]


def last_run(folder: Path) -> RunRecord:
    """The run in a folder that ended last."""
    return runs(folder)[-1]


def stage_files(folder: Path, stage: str, name: str) -> list[Path]:
    """A file of every result of this stage that the runs in a folder rest on."""
    results = {one.folder for run in runs(folder) for one in run.stages.values() if one.name == stage}
    return sorted(result / name for result in results)


def summary(folder: Path) -> pd.DataFrame:
    """The scores of the last run or sweep."""
    file = max(folder.glob("outputs/runs/*/*/summary.csv"), key=lambda path: path.stat().st_mtime)
    return pd.read_csv(file).set_index("strategy")


def read_records(annotations: Path, rule: TaskNamer | None = None) -> list[Record]:
    """The records of a file in which each has an image and a unique id."""
    return LlavaFiles(annotations, annotations.parent, rule or TaskRule()).records()


def record(number: int, task: str = "vqa", **changes: Any) -> dict[str, Any]:
    """One LLaVA-format record."""
    return {
        "id": f"{number:04}",
        "image": f"{number:04}.png",
        "task": task,
        "conversations": [
            {"from": "human", "value": f"<image>\nHow many things are there? ({number})"},
            {"from": "gpt", "value": f"There are {number % 7}."},
        ],
    } | changes


def two(number: int, *others: int, task: str = "vqa", **changes: Any) -> dict[str, Any]:
    """A record whose question compares its own image with others."""
    turns = [
        {"from": "human", "value": "<image>\n" * (1 + len(others)) + f"Which is darker? ({number})"},
        {"from": "gpt", "value": "The first one."},
    ]
    images = [f"{one:04}.png" for one in (number, *others)]
    return record(number, task, **{"image": images, "conversations": turns} | changes)


def chat(name: str) -> dict[str, Any]:
    """A record without an image."""
    turns = [{"from": "human", "value": f"A word, {name}?"}, {"from": "gpt", "value": "Yes."}]
    return {"id": name, "conversations": turns}


def change(folder: Path, *changed: dict[str, Any], file: str = "pool.json") -> None:
    """Puts records in the place of those with their ids in a pool's file, or at its beginning."""
    new = {one["id"]: one for one in changed}
    old = [new.pop(one["id"], one) for one in json.loads((folder / file).read_text())]
    (folder / file).write_text(json.dumps([*new.values(), *old]))


def on_folder(folder: Path) -> list[str]:
    """Overrides that run on the pool of the fixture `pool_folder`."""
    return [
        "experiment=realpool",
        f"pool.annotations={folder}/pool.json",
        f"pool.images={folder}/images",
        f"evaluation.annotations={folder}/eval.json",
        "executor.workers=0",
        "evaluation.max_new_tokens=8",
    ]


class RecordingReporter:
    """Records which stages were computed and which reused."""

    def __init__(self) -> None:
        self.computed: list[str] = []
        self.reused: list[str] = []

    def started(self, label: str) -> None:
        pass

    def waiting(self, label: str) -> None:
        pass

    def finished(self, label: str, key: str, seconds: float | None) -> None:
        (self.reused if seconds is None else self.computed).append(label)


def is_running(process: int) -> bool:
    """Whether there is a process of this number that has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
