"""Thumbnails of the chosen images, task by task."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from presel.data.checks import check_read_back
from presel.data.images import open_image
from presel.runs import RunRecord

# Pixels.
_SIDE = 72


def gallery(shown: Mapping[str, RunRecord], count: int) -> dict[str, list[tuple[str, list[str]]]]:
    """Shows for each task the most and the least central images, and a sample of each setting's choice.

    Args:
        shown: One run per setting.
        count: Images per row.

    Returns:
        Rows by task: a heading, and images as `data:` URIs.
    """
    rows: dict[str, list[tuple[str, list[str]]]] = {}
    for name, run in shown.items():
        files = dict(zip(run.pool["id"], run.pool["image"], strict=True))
        for task, images in run.selection.groupby("task"):
            task_rows = rows.setdefault(str(task), [])
            if "centrality" in images:
                ranked = images.dropna(subset="centrality").sort_values("centrality")["id"]
                task_rows.append(_row(f"most central ({name})", run, files, ranked[: -count - 1 : -1]))
                task_rows.append(_row(f"least central ({name})", run, files, ranked[:count]))
            # Evenly spaced by id, which often reflects how images were made.
            chosen = images[images["selected"]].sort_values("id")["id"]
            spread = chosen[:: max(1, len(chosen) // count)][:count]
            task_rows.append(_row(f"chosen by {name}", run, files, spread))
    return rows


def _row(heading: str, run: RunRecord, files: Mapping[str, str], ids: pd.Series) -> tuple[str, list[str]]:
    paths = (check_read_back(run.image_folder, files[name], str(run.folder)) for name in ids)
    return heading, [_thumbnail(path) for path in paths]


def _thumbnail(file: Path) -> str:
    image = open_image(file)
    image.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
