"""The selection manifest: which images were selected, why, and from which data and settings."""

import os
import time
from pathlib import Path
from typing import Any

import pandas as pd

from presel.runs import RunRecord
from presel.storage.files import write_json, write_table
from presel.storage.integrity import MANIFEST

MANIFEST_JSON = "selection_manifest.json"
TABLE = "selection_manifest.parquet"


def write_manifest(
    folder: Path, run: RunRecord, chosen: pd.DataFrame, role: str, about: dict[str, Any]
) -> None:
    """Writes one row per selected image as parquet, and the provenance of the selection as JSON, last.

    Args:
        folder: The folder to write to.
        run: The run.
        chosen: The rows.
        role: Role of the last stage that is exported; it and every stage behind it are listed.
        about: Further entries of the JSON.
    """
    write_table(folder / TABLE, chosen)
    selection = run.stages["selection"].manifest
    head = about | {
        "strategy": run.strategy,
        "seed": selection["settings"]["seed"],
        "budget": selection["settings"]["budget"],
        "budget_images": selection["measured"]["budget"],
        "chosen_images": len(chosen),
        "pool_images": len(run.pool),
        "left_out_of_pool": run.left_out,
        "overrides": run.overrides,
        # Of the code that made the selection, which may be older than a run that reused it.
        "versions": selection["versions"],
        "git_commit": selection["git_commit"],
        "selected_at": selection["finished"],
        "exported_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "stages": _lineage(run, role),
        "written": written_paths(folder),
    }
    write_json(folder / MANIFEST_JSON, head)


def written_paths(folder: Path) -> list[str]:
    """Relative paths of all files and folders in an export, sorted."""
    start = len(str(folder)) + 1
    # Not `rglob`, which takes several times as long for hundreds of thousands of images.
    return sorted(
        f"{place}/{name}"[start:] for place, folders, files in os.walk(folder) for name in (*folders, *files)
    )


def _lineage(run: RunRecord, role: str) -> dict[str, Any]:
    """Key and settings of a stage and every stage behind it, by role; no settings of a deleted result."""
    roles = {f"{stage.name}/{stage.key}": role for role, stage in run.stages.items()}
    found: dict[str, Any] = {}

    def visit(role: str) -> None:
        if role in found:
            return
        stage = run.stages[role]
        found[role] = {"key": stage.key, "label": stage.label, "settings": None}
        if (stage.folder / MANIFEST).exists():
            found[role]["settings"] = stage.manifest["settings"]
            for source in stage.manifest["inputs"]:
                visit(roles[source])

    visit(role)
    return found
