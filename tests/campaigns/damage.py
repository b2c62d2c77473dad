"""Campaign: a finished store, of which one file is flipped, cut, emptied or deleted."""

import random
import shutil
from pathlib import Path
from typing import NamedTuple

from presel.storage.integrity import MANIFEST, result_files
from tests.campaigns.pipeline import ENDS, arguments, differences, serving
from tests.campaigns.program import presel

KINDS = ("flip", "cut", "empty", "delete")


class Damage(NamedTuple):
    """What one damaged file did.

    Attributes:
        kind: How it was damaged.
        file: The file, by its path in the store.
        refused: How many of the runs on the damaged store ended with an error.
        faults: What went wrong, in words.
    """

    kind: str
    file: str
    refused: int
    faults: list[str]


def damage(number: int, seed: int, finished: Path, out: Path) -> Damage:
    """Damages a copy of a finished pipeline, looks for it, and repairs it as told.

    Args:
        number: Number of the trial.
        seed: Decides what is damaged.
        finished: Folder of the finished pipeline.
        out: Where the trial's files go; deleted if all is well.
    """
    draw = random.Random(f"{seed} {number}")
    kind = KINDS[number % len(KINDS)]
    folder = out / f"damage-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    store = folder / "outputs/store"
    shutil.copytree(finished / "outputs", folder / "outputs")
    file = _drawn(draw, store)
    _harm(file, kind, draw)
    name = str(file.relative_to(store))
    stage = store / Path(name).parts[0] / Path(name).parts[1]
    faults = []
    verify = presel(folder, "store", "verify")
    faults += [f"verify: {fault}" for fault in verify.faults(1)]
    # Without its manifest a result is unfinished, and goes on where it stopped.
    named = name if (stage / MANIFEST).exists() else str(stage.relative_to(store))
    if named not in verify.output.replace("\n", ""):
        faults.append(f"verify does not name {named}")
    with serving(folder / "server") as server:
        runs = [presel(folder, *arguments(server, end)) for end in ENDS]
        for run in runs:
            faults += [f"run: {fault}" for fault in run.faults(0, 2)]
        # The remedy that verify names.
        shutil.rmtree(stage)
        for end in ENDS:
            faults += [
                f"after the remedy: {fault}" for fault in presel(folder, *arguments(server, end)).faults(0)
            ]
        asked = len(server.seen())
    faults += [f"after the remedy: {what}" for what in differences(store, finished / "outputs/store")]
    if asked:
        faults.append(f"{asked} requests repeated")
    if not faults:
        shutil.rmtree(folder)
    return Damage(kind, name, sum(run.code == 2 for run in runs), faults)


def _drawn(draw: random.Random, store: Path) -> Path:
    """One file of the store, every kind of stage alike."""
    stage = draw.choice(sorted(folder for folder in store.iterdir() if folder.is_dir()))
    folder = draw.choice(sorted(one for one in stage.iterdir() if one.is_dir()))
    return draw.choice([folder / MANIFEST, *(file for _, file in result_files(folder))])


def _harm(file: Path, kind: str, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if kind == "delete":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "cut":
        file.write_bytes(content[: draw.randrange(len(content))])
    elif content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
