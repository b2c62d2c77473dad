"""Contact sheets: thumbnails of what was chosen and left out, task by task and cluster by cluster."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from presel.page import PictureRow, picture
from presel.report.columns import with_numbers
from presel.runs import RunRecord

# Clusters and tasks shown on a page, the largest ones: each has some twenty thumbnails.
_CLUSTERS = 40
_PER_TASK = 3
# Images in the row of a cluster's center.
_CENTER = 4


def gallery(shown: Mapping[str, RunRecord], count: int) -> dict[str, list[PictureRow]]:
    """Shows of each task what was chosen and what was left out.

    Of runs that cluster, the largest clusters are shown one by one: their most central images, those chosen
    and those left out, both from the most to the least central.

    Args:
        shown: One run per setting.
        count: Images per row.

    Returns:
        Rows by task, the largest tasks if there are many.
    """
    rows: dict[str, list[PictureRow]] = {}
    tables = {name: with_numbers(run.selection) for name, run in shown.items()}
    sizes = pd.concat([table["task"] for table in tables.values()]).value_counts()
    most = max(1, _CLUSTERS // len(shown))
    tasks = sorted(sizes.index[:most])
    per_task = max(1, min(_PER_TASK, most // len(tasks)))
    for name, run in shown.items():
        pictures = _Pictures(run)
        whose = f" by {name}" if len(shown) > 1 else ""
        for task, images in tables[name].groupby("task"):
            if task in tasks:
                sheet = _clusters if {"cluster", "centrality"} <= set(images) else _task
                rows.setdefault(str(task), []).extend(sheet(images, pictures, count, whose, per_task))
    return {task: rows[task] for task in sorted(rows)}


class _Pictures:
    """Thumbnails of a run's images."""

    def __init__(self, run: RunRecord) -> None:
        self._run = run

    def of(self, heading: str, images: pd.DataFrame) -> PictureRow:
        files = self._run.images_of(images["id"].tolist())
        names = map(_caption, images.to_dict("records"))
        pictures = (
            picture(self._run.image_folder / file, name) for file, name in zip(files, names, strict=True)
        )
        return PictureRow(heading, list(pictures))


def _caption(image: Mapping[Hashable, Any]) -> str:
    known = [f"{key} {image[key]:.3g}" for key in ("centrality", "rank") if pd.notna(image.get(key))]
    return ", ".join([image["id"], *known])


def _task(images: pd.DataFrame, pictures: _Pictures, count: int, whose: str, _: int) -> Iterator[PictureRow]:
    """What was chosen and left out of a task, evenly spaced by id, which often tells how images were made."""
    for chosen, what in ((True, f"chosen{whose}"), (False, f"left out{whose}")):
        part = images[images["selected"] == chosen].sort_values("id")
        yield pictures.of(f"{what} ({len(part):,})", _spread(part, count))


def _clusters(
    images: pd.DataFrame, pictures: _Pictures, count: int, whose: str, most: int
) -> Iterator[PictureRow]:
    """The largest clusters of a task."""
    ranked = images.sort_values("centrality", ascending=False, kind="stable")
    largest = images["cluster"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    for cluster in largest.index[:most]:
        members = ranked[ranked["cluster"] == cluster]
        title = f"cluster {int(cluster)}, {len(members):,} images{whose}"
        yield pictures.of(f"{title}: most central", members.dropna(subset="centrality").head(_CENTER))
        for chosen, what in ((True, "chosen"), (False, "left out")):
            part = members[members["selected"] == chosen]
            yield pictures.of(f"{what} ({len(part):,})", _spread(part, count))


def _spread(images: pd.DataFrame, count: int) -> pd.DataFrame:
    """Rows at even distances, the first and the last among them."""
    places = np.linspace(0, len(images) - 1, min(count, len(images)))
    return images.iloc[np.unique(places.round().astype(int))]
