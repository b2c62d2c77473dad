"""Pictures of what was chosen."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from presel.data.checks import check_read_back
from presel.data.images import open_image
from presel.report.collect import Run

_SIDE = 72


@dataclass
class Shelf:
    """Pictures under one heading, as `data:` URIs."""

    heading: str
    pictures: list[str]


def gallery(shown: Mapping[str, Run], count: int) -> dict[str, list[Shelf]]:
    """Shows per task the most and the least central images, and some that each setting chose.

    Args:
        shown: A run of each setting.
        count: Pictures on a shelf.

    Returns:
        Shelves by task.
    """
    shelves: dict[str, list[Shelf]] = {}
    for name, run in shown.items():
        for task, images in run.selection.groupby("task"):
            rows = shelves.setdefault(str(task), [])
            if "centrality" in images:
                ranked = images.dropna(subset="centrality").sort_values("centrality")["id"]
                rows.append(_shelf(f"most central ({name})", run, ranked[: -count - 1 : -1]))
                rows.append(_shelf(f"least central ({name})", run, ranked[:count]))
            # Spread over the ids, which often tell how images were made.
            chosen = images[images["selected"]].sort_values("id")["id"]
            spread = chosen[:: max(1, len(chosen) // count)][:count]
            rows.append(_shelf(f"chosen by {name}", run, spread))
    return shelves


def _shelf(heading: str, run: Run, ids: pd.Series) -> Shelf:
    files = (check_read_back(run.images, run.image_paths[name], str(run.folder)) for name in ids)
    return Shelf(heading, [_thumbnail(file) for file in files])


def _thumbnail(file: Path) -> str:
    image = open_image(file)
    image.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
