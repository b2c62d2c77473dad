"""Fixtures that several test files share: the program, its store, and small pools on disk."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hypothesis
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from presel.cli import main
from presel.console import console, show_messages
from presel.data.llava import LlavaFiles, TaskRule
from presel.data.sources import LlavaJson
from presel.stages.pool import PoolStage
from presel.storage.store import Store
from tests.helpers import InSubprocess, Program, RecordingReporter, Result, record

# A busy machine is no failure.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=100)
hypothesis.settings.load_profile("quick")

# Names of Chromium.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# As the program does.
show_messages()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names no test by its bytes: gzip writes the time into them, and all processes must agree on names."""
    return "bytes" if isinstance(val, bytes) else None


@pytest.fixture
def reporter() -> RecordingReporter:
    return RecordingReporter()


@pytest.fixture
def store(tmp_path: Path, reporter: RecordingReporter) -> Store:
    """A store of the test's own."""
    return Store(tmp_path / "store", reporter)


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that all tests share, those of other worker processes too."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "store"


@pytest.fixture
def program(tmp_path: Path, shared_store: Path) -> Program:
    """Runs the real command line in `tmp_path`."""
    return InSubprocess(tmp_path, shared_store)


class InProcess(Program):
    """The command line in this process, which spares the imports."""

    def __init__(
        self,
        folder: Path,
        shared_store: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        super().__init__(folder, shared_store)
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def _call(self, arguments: tuple[str, ...], extra: dict[str, str]) -> Result:
        self._capsys.readouterr()
        handler = signal.getsignal(signal.SIGTERM)
        with self._monkeypatch.context() as restored, patch.dict(os.environ, extra):
            restored.chdir(self.folder)
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
        return Result(arguments, code, *self._capsys.readouterr())


@pytest.fixture
def in_process(
    tmp_path: Path,
    shared_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Program:
    """Runs the command line in `tmp_path` like `program`, but in this process."""
    return InProcess(tmp_path, shared_store, monkeypatch, capsys)


@pytest.fixture
def pool_folder(tmp_path: Path) -> Path:
    """A LLaVA-format pool of 60 noise images in two tasks: `pool.json`, `eval.json` and `images/`.

    Content and dates are the same each time, so that tests share what is computed of it.
    """
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    records = [record(number, "vqa" if number % 3 else "ocr") for number in range(60)]
    for number in range(60):
        file = tmp_path / "images" / f"{number:04}.png"
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file)
        os.utime(file, (0, 0))
    (tmp_path / "pool.json").write_text(json.dumps(records))
    (tmp_path / "eval.json").write_text(json.dumps(records[:8]))
    return tmp_path


@pytest.fixture
def files(pool_folder: Path) -> LlavaFiles:
    """The files of `pool_folder`."""
    return LlavaFiles(pool_folder / "pool.json", pool_folder / "images", TaskRule())


@pytest.fixture
def pool(pool_folder: Path) -> PoolStage:
    """The stage that checks the images of `pool_folder`."""
    source = LlavaJson(annotations=pool_folder / "pool.json", images=pool_folder / "images")
    return PoolStage(source=source, workers=0)


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Where the instructions of a provider are kept."""
    return tmp_path / "answers"


@pytest.fixture(scope="session")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of tiny models in the public formats, see `save_public_models`."""
    # Here, because torch and transformers take seconds, and most tests of selection need neither.
    from tests.public import save_public_models

    folder = tmp_path_factory.mktemp("public")
    save_public_models(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium that is installed, driven by Playwright; without one the test is skipped, and says so."""
    driver = pytest.importorskip("playwright.sync_api")
    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    if installed is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)} is on the PATH")
    with driver.sync_playwright() as play:
        # Chromium's sandbox does not start for root.
        started = play.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield started
        started.close()
