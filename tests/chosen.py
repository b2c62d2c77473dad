"""A finished selection without a run: a record whose results are written here, image by image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from presel.runs import RunRecord, StageRecord
from presel.storage.integrity import write_manifest


def chosen_run(
    folder: Path, ids: Sequence[str], chosen: Sequence[int], strategy: str = "presel", **columns: Any
) -> RunRecord:
    """A run that ended with the selection, of noise images that are all one task unless `columns` say else.

    Args:
        folder: Receives images and results.
        ids: Ids of the pool.
        chosen: Rows of the chosen images.
        strategy: Name of the strategy.
        columns: Further columns of the selection, such as `task`, `cluster`, `centrality`.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.png" for number in range(len(ids))]
    generator = np.random.default_rng(0)
    for name in names:
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(images / name)
    pool = pd.DataFrame({"id": ids, "image": names, "content": names})
    selection = pd.DataFrame({"id": ids, "task": "vqa", "selected": False}).assign(**columns)
    selection.loc[list(chosen), "selected"] = True
    stages = {
        "images": _stage(folder / "pool", pool=pool),
        "selection": _stage(folder / strategy, selection=selection),
    }
    return RunRecord(
        folder=folder,
        strategy=strategy,
        seed=0,
        overrides=[],
        unused=[],
        image_folder=images,
        stages=stages,
        baselines=[],
        versions={},
    )


def _stage(folder: Path, **tables: pd.DataFrame) -> StageRecord:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet")
    return finished(folder)


def finished(folder: Path, settings: dict[str, Any] | None = None, **measured: Any) -> StageRecord:
    """Makes a folder the result of a stage, of which only this is known."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "stage": folder.name,
        "label": folder.name,
        "version": 1,
        "key": "",
        "settings": settings or {},
        "inputs": {},
        "versions": {},
        "git_commit": None,
        "finished": "",
        "wall_seconds": 1.0,
        "measured": measured,
    }
    write_manifest(folder, about)
    return StageRecord(name=folder.name, key=str(folder), label=folder.name, folder=folder)
