"""Fixtures that several test files share: the real program, and small pools on disk."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings
from PIL import Image

from presel.cli import main
from presel.console import console, show_messages
from presel.storage.store import Store

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# As the program does.
show_messages()

# Small enough that a whole run takes seconds, large enough that every task has a reference set.
TINY = ("pool.size=400", "evaluation.size=6", "executor.workers=0", "evaluation.max_new_tokens=8")

Program = Callable[..., subprocess.CompletedProcess[str]]


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names no test by its bytes: gzip writes the time into them, and all processes must agree on names."""
    return "bytes" if isinstance(val, bytes) else None


class SilentReporter:
    """Remembers what became of each stage."""

    def __init__(self) -> None:
        self.computed: list[str] = []
        self.reused: list[str] = []

    def started(self, label: str) -> None:
        pass

    def waiting(self, label: str) -> None:
        pass

    def finished(self, label: str, key: str, seconds: float | None) -> None:
        (self.reused if seconds is None else self.computed).append(label)


@pytest.fixture
def reporter() -> SilentReporter:
    return SilentReporter()


@pytest.fixture
def store(tmp_path: Path, reporter: SilentReporter) -> Store:
    return Store(tmp_path / "store", reporter)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "presel", *arguments]


def environment(**extra: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | extra


def program_in(folder: Path) -> Program:
    """Runs the real command line in a folder."""

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            cwd=folder,
            env=environment(**extra),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Runs the real command line in `tmp_path`."""
    return program_in(tmp_path)


@pytest.fixture
def in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Program:
    """Runs the command line in `tmp_path` like `program`, but in this process, which spares the imports."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        handler = signal.getsignal(signal.SIGTERM)
        with monkeypatch.context() as restored, patch.dict(os.environ):
            restored.chdir(tmp_path)
            for name in ("argv", "path", "excepthook", "dont_write_bytecode"):
                restored.setattr(sys, name, copy(getattr(sys, name)))
            restored.setattr(console, "_file", None)
            try:
                code = main(arguments)
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                GlobalHydra.instance().clear()
                signal.signal(signal.SIGTERM, handler)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


def stage_lines(output: str) -> dict[str, str]:
    """What the stage lines say: label → `reused` or the time taken."""
    found = {}
    for line in output.splitlines():
        if line.startswith("✓"):
            words = line[2:].split()
            reused = words[-2] == "reused"
            found[" ".join(words[: -2 if reused else -3])] = "reused" if reused else "computed"
    return found


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


@pytest.fixture
def pool_folder(tmp_path: Path) -> Path:
    """A LLaVA-format pool of 60 noise images in two tasks: `pool.json`, `eval.json` and `images/`."""
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    records = [record(number, "vqa" if number % 3 else "ocr") for number in range(60)]
    for number in range(60):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:04}.png")
    (tmp_path / "pool.json").write_text(json.dumps(records))
    (tmp_path / "eval.json").write_text(json.dumps(records[:8]))
    return tmp_path


def on_folder(folder: Path) -> list[str]:
    """Overrides that run on the pool of `pool_folder`."""
    return [
        "experiment=realpool",
        f"pool.annotations={folder}/pool.json",
        f"pool.images={folder}/images",
        f"evaluation.annotations={folder}/eval.json",
        "executor.workers=0",
        "evaluation.max_new_tokens=8",
    ]


@pytest.fixture(scope="session")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of tiny models in the public formats, see `save_public_models`."""
    # Here, because torch and transformers take seconds, and most tests of selection need neither.
    from tests.public import save_public_models

    folder = tmp_path_factory.mktemp("public")
    save_public_models(folder)
    return folder
