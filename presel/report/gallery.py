"""Pictures of what was chosen."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from presel.data.images import open_image
from presel.report.collect import Run

_SIDE = 72


@dataclass
class Shelf:
    """Pictures under one heading, as `data:` URIs."""

    heading: str
    pictures: list[str] = field(default_factory=list)


def gallery(shown: Mapping[str, Run], count: int) -> dict[str, list[Shelf]]:
    """Shows per task the most and the least central images, and some that each setting chose.

    Args:
        shown: A run of each setting, all of one pool.
        count: Pictures on a shelf.

    Returns:
        Shelves by task.
    """
    files = next(iter(shown.values())).image_files
    shelves: dict[str, list[Shelf]] = {}

    def place(task: str, heading: str, ids: pd.Series) -> None:
        pictures = [_thumbnail(files[name]) for name in ids]
        shelves.setdefault(task, []).append(Shelf(heading, pictures))

    for name, run in shown.items():
        for task, images in run.selection.groupby("task"):
            if "centrality" in images:
                ranked = images.dropna(subset="centrality").sort_values("centrality")["id"]
                place(str(task), f"most central ({name})", ranked[: -count - 1 : -1])
                place(str(task), f"least central ({name})", ranked[:count])
            # Spread over the ids, which often tell how images were made.
            chosen = images[images["selected"]].sort_values("id")["id"]
            place(str(task), f"chosen by {name}", chosen[:: max(1, len(chosen) // count)][:count])
    return shelves


def _thumbnail(file: Path) -> str:
    image = open_image(file)
    image.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
