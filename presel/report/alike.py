"""Near-duplicates among the chosen images, which are paid for though they show nearly the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from presel.data.decoding import BrokenImage
from presel.data.images import map_images, open_image
from presel.data.near_duplicates import groups_of_thumbnails, thumbnail
from presel.page import PictureRow, picture
from presel.page.pictures import FEW
from presel.runs import RunRecord

# Groups that are shown, the largest ones, and images of each.
_SHOWN = 12
_MEMBERS = 8
# Chosen images that are compared at most.
_COMPARED = 10_000


class Alike(NamedTuple):
    """Near-duplicates in one selection: a sentence about them, and pictures of the largest groups."""

    said: str
    rows: Sequence[PictureRow]


def alike(shown: Mapping[str, RunRecord], workers: int = 0) -> dict[str, Alike]:
    """Finds near-duplicates in each run's selection, unless that is the whole pool.

    Args:
        shown: One run per setting.
        workers: Worker processes that open images.
    """
    runs = {name: run for name, run in shown.items() if not run.selection["selected"].all()}
    return {name: _described(name, run, _groups(run, workers)) for name, run in runs.items()}


def _groups(run: RunRecord, workers: int) -> list[list[str]]:
    """Ids of chosen images of one task that show nearly the same, the largest groups first.

    Of many chosen images only a random sample is compared, since each must be opened.
    """
    chosen = run.chosen
    if len(chosen) > _COMPARED:
        chosen = chosen.sample(_COMPARED, random_state=0)
    files = run.images_of(chosen["id"].tolist())
    thumbnails = map_images(run.image_folder, files, _thumbnail, workers if len(files) > FEW else 0)
    usable = chosen[[one is not None for one in thumbnails]]
    numbers = groups_of_thumbnails([one for one in thumbnails if one is not None])
    groups = [sorted(ids) for _, ids in usable["id"].groupby([usable["task"], numbers])]
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group))


def _described(name: str, run: RunRecord, groups: Sequence[Sequence[str]]) -> Alike:
    extra = sum(len(group) - 1 for group in groups)
    sampled = len(run.chosen) > _COMPARED
    what = (
        f"Of {_COMPARED:,} images, a random part of what {name} chose" if sampled else f"Of what {name} chose"
    )
    if not extra:
        return Alike(f"{what}, no two of one task are near-duplicates.", [])
    rows = []
    for group in groups[:_SHOWN]:
        names = group[:_MEMBERS]
        files = zip(run.images_of(names), names, strict=True)
        pictures = [picture(run.image_folder / file, one) for file, one in files]
        rows.append(PictureRow(f"{len(group)} alike", pictures))
    number = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
    largest = f", of which the {_SHOWN} largest are shown" if len(groups) > _SHOWN else ""
    return Alike(
        f"{what}, {extra:,} show nearly the same as another one of their task, in {number}{largest}; "
        "pool.near_duplicates=keep_one leaves such copies out of the pool.",
        rows,
    )


def _thumbnail(root: Path, image: str) -> bytes | None:
    try:
        return thumbnail(open_image(root / image)).tobytes()
    except BrokenImage:
        return None
