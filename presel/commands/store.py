"""`presel store`: lists the stored results, verifies them, and deletes unfinished ones."""

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.table import Table

from presel.console import ArgumentParser, console
from presel.errors import PreselError
from presel.storage.files import delete_temporary_files
from presel.storage.integrity import MANIFEST, DamagedResult, faults, read_manifest, remedy, result_files
from presel.storage.stage import KEY


def main(arguments: Sequence[str]) -> int:
    """Runs `presel store`; returns 1 if `verify` found a problem."""
    parser = ArgumentParser(prog="presel store", description="List, verify or clean stored results.")
    parser.add_argument(
        "action",
        choices=("list", "verify", "clean"),
        help="list: every result; verify: compare every file with the size and SHA-256 in its result's "
        "manifest, and find missing inputs; clean: delete unfinished results and temporary files",
    )
    parser.add_argument("--store", type=Path, default=Path("outputs/store"), help="its folder (%(default)s)")
    options = parser.parse_args(arguments)
    if not options.store.is_dir():
        parser.error(f"{options.store} is no folder; name the store by --store")
    # What is left of a store without results are locks.
    locks = (path for path in options.store.glob("*/*.lock") if KEY.fullmatch(path.stem))
    if any(options.store.iterdir()) and not _results(options.store) and not any(locks):
        raise PreselError(f"--store={options.store} holds no results; name the folder that paths.store sets")
    return {"list": _list, "verify": _verify, "clean": _clean}[options.action](options.store)


def _results(store: Path) -> list[Path]:
    """Folders named as results are, finished or not, so that no other folder is taken for one."""
    return sorted(folder for folder in store.glob("*/*") if KEY.fullmatch(folder.name) and folder.is_dir())


def _list(store: Path) -> int:
    table = Table("stage", "key", "finished", "seconds", "MB")
    for folder in _results(store):
        label, finished, seconds = folder.parent.name, "unfinished", ""
        if (folder / MANIFEST).exists():
            try:
                manifest = read_manifest(folder)
                label, finished = manifest["label"], manifest["finished"]
                seconds = f"{manifest['wall_seconds']:.1f}"
            except DamagedResult:
                finished = "damaged"
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
        table.add_row(label, folder.name, finished, seconds, f"{size:.1f}")
    console.print(table)
    return 0


def _verify(store: Path) -> int:
    folders, problems = _results(store), 0
    finished = [folder for folder in folders if (folder / MANIFEST).exists()]
    for folder in finished:
        for problem in _problems(folder, store):
            problems += 1
            console.print(problem)
    # Another run may be at work on these.
    unfinished = len(folders) - len(finished)
    more = f", unfinished: {unfinished} (continued by the runs that need them)" if unfinished else ""
    console.print(f"results: {len(finished)}, problems: {problems}{more}")
    return int(problems > 0)


def _problems(folder: Path, store: Path) -> Iterator[str]:
    name = f"{folder.parent.name}/{folder.name}"
    try:
        manifest = read_manifest(folder)
        if (manifest["stage"], manifest["key"]) != (folder.parent.name, folder.name):
            yield f"{name}: it is {manifest['stage']}/{manifest['key']}; {remedy(folder)}"
        for fault in faults(folder, manifest, math.inf):
            yield f"stage '{manifest['label']}': {fault}; {remedy(folder)}"
    except DamagedResult as error:
        yield str(error)
        return
    except PermissionError as error:
        yield f"{name}: {error.filename} may not be read; allow it, and verify again"
        return
    for file, path in result_files(folder):
        if file not in manifest["files"]:
            yield f"{name}: {path} is not part of the result, and nothing reads it; delete the file"
    for source in manifest["inputs"]:
        if not (store / source / MANIFEST).exists():
            yield f"{name}: its input {source} is gone; it can be used, but its provenance is incomplete"


def _clean(store: Path) -> int:
    unfinished = temporary = 0
    for folder in _results(store):
        try:
            with FileLock(folder.with_suffix(".lock"), blocking=False):
                if not (folder / MANIFEST).exists():
                    shutil.rmtree(folder)
                    unfinished += 1
                    console.print(f"deleted {folder}")
                else:
                    temporary += delete_temporary_files(folder)
        except Timeout:
            console.print(f"kept {folder}, which a run is computing")
    console.print(f"{unfinished} unfinished results deleted, {temporary} temporary files deleted")
    return 0
