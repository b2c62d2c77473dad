"""`presel store`: what the store holds, whether it is whole, and throwing away what is not finished."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.table import Table

from presel.console import console
from presel.files import read_json
from presel.store import MANIFEST


def store_command(arguments: Sequence[str]) -> int:
    """Runs `presel store`.

    Returns:
        0, or 1 where `verify` found something wrong.
    """
    parser = argparse.ArgumentParser(prog="presel store", description="Look after stored results.")
    parser.add_argument(
        "action",
        choices=("list", "verify", "clean"),
        help="list: every result; verify: find unreadable manifests and missing inputs; "
        "clean: delete unfinished results",
    )
    parser.add_argument("--store", type=Path, default=Path("outputs/store"), help="its folder (%(default)s)")
    options = parser.parse_args(arguments)
    if not options.store.is_dir():
        parser.error(f"{options.store} is no folder; name the store by --store")
    return {"list": _list, "verify": _verify, "clean": _clean}[options.action](options.store)


def _results(store: Path) -> list[Path]:
    return sorted(folder for folder in store.glob("*/*") if folder.is_dir())


def _list(store: Path) -> int:
    table = Table("stage", "key", "finished", "seconds", "MB")
    for folder in _results(store):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
        if (folder / MANIFEST).exists():
            manifest = read_json(folder / MANIFEST)
            cells = (manifest["label"], folder.name, manifest["finished"], f"{manifest['wall_seconds']:.1f}")
        else:
            cells = (folder.parent.name, folder.name, "unfinished", "")
        table.add_row(*cells, f"{size:.1f}")
    console.print(table)
    return 0


def _verify(store: Path) -> int:
    problems = []
    for folder in _results(store):
        name = f"{folder.parent.name}/{folder.name}"
        if not (folder / MANIFEST).exists():
            problems.append(f"{name}: unfinished; the run that needs it goes on with it")
            continue
        try:
            manifest = read_json(folder / MANIFEST)
        except ValueError as error:
            problems.append(f"{name}: its manifest is not JSON ({error}); delete the folder")
            continue
        if manifest["key"] != folder.name:
            problems.append(f"{name}: its manifest is that of {manifest['key']}; delete the folder")
        for source in manifest["inputs"]:
            if not (store / source / MANIFEST).exists():
                problems.append(
                    f"{name}: its input {source} is gone; it still serves, but cannot be retraced"
                )
    for problem in problems:
        console.print(problem)
    console.print(f"{len(_results(store))} results, {len(problems)} problems")
    return 1 if problems else 0


def _clean(store: Path) -> int:
    unfinished = [folder for folder in _results(store) if not (folder / MANIFEST).exists()]
    deleted = 0
    for folder in unfinished:
        try:
            with FileLock(folder.with_suffix(".lock"), blocking=False):
                shutil.rmtree(folder)
        except Timeout:
            console.print(f"kept {folder}, which a run is computing")
            continue
        console.print(f"deleted {folder}")
        deleted += 1
    console.print(f"{deleted} unfinished results deleted")
    return 0
