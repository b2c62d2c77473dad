"""The selection manifest: what was chosen, why, and out of what it came."""

import time
from pathlib import Path
from typing import Any

import pandas as pd

from presel.export.finished import FinishedRun
from presel.storage.files import write_json, write_table
from presel.storage.integrity import MANIFEST, read_manifest

HEAD = "selection_manifest.json"
TABLE = "selection_manifest.parquet"


def write_manifest(
    folder: Path, run: FinishedRun, chosen: pd.DataFrame, last: Path, about: dict[str, Any]
) -> None:
    """Writes one row a chosen image as parquet, and beside it where the choice came from as JSON.

    Args:
        folder: Where they go.
        run: The run that chose.
        chosen: The rows.
        last: Folder of the last stage that is exported; it and all it rests on are listed.
        about: What else stands at the head of the JSON.
    """
    write_table(folder / TABLE, chosen)
    selection = read_manifest(run.selection)
    head = about | {
        "strategy": run.strategy,
        "seed": selection["settings"]["seed"],
        "budget": selection["settings"]["budget"],
        "budget_images": selection["measured"]["budget"],
        "chosen_images": len(chosen),
        "pool_images": run.pool_size,
        "overrides": run.overrides,
        # The code that chose, which may be older than the run that found its choice in the store.
        "versions": selection["versions"],
        "git_commit": selection["git_commit"],
        "selected_at": selection["finished"],
        "exported_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "stages": _lineage(last),
    }
    write_json(folder / HEAD, head)


def _lineage(last: Path) -> dict[str, Any]:
    """Key and settings of a stage and all it rests on, by label; of a deleted result the key alone."""
    store = last.parent.parent
    found: dict[str, Any] = {}

    def visit(folder: Path, label: str) -> None:
        if label in found:
            return
        found[label] = {"key": folder.name, "settings": None}
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            found[label]["settings"] = manifest["settings"]
            for source, source_label in manifest["inputs"].items():
                visit(store / source, source_label)

    visit(last, read_manifest(last)["label"])
    return found
