"""Near-duplicates among the chosen images, which are paid for though they show nearly the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from presel.data.checks import check_read_back
from presel.data.decoding import BrokenImage
from presel.data.images import map_images, open_image
from presel.data.near_duplicates import groups_of_thumbnails, near_duplicates_to_drop, thumbnail
from presel.page import PictureRow, picture
from presel.page.pictures import FEW
from presel.runs import RunRecord
from presel.stages.pool import image_list

# Groups that are shown, the largest ones, and images of each.
_SHOWN = 12
_MEMBERS = 8
# Chosen images that are compared at most.
_COMPARED = 10_000


class NearDuplicateGroups(NamedTuple):
    """Near-duplicates in one selection: a sentence about them, and pictures of the largest groups."""

    sentence: str
    rows: Sequence[PictureRow]


def find_near_duplicates(shown: Mapping[str, RunRecord], workers: int = 0) -> dict[str, NearDuplicateGroups]:
    """Finds near-duplicates in each run's selection, unless that is the whole pool.

    Args:
        shown: One run per setting.
        workers: Worker processes that open images.
    """
    runs = {name: run for name, run in shown.items() if not run.selection["selected"].all()}
    return {name: _described(name, run, _groups(run, workers)) for name, run in runs.items()}


def _groups(run: RunRecord, workers: int) -> list[list[str]]:
    """Ids of chosen records of one task that show nearly the same, by the rule of `pool.near_duplicates`.

    Of many chosen records only a random sample is compared, since each image must be opened.

    Returns:
        Groups of ids, the largest first.
    """
    chosen = run.chosen
    if len(chosen) > _COMPARED:
        chosen = chosen.sample(_COMPARED, random_state=0)
    images = image_list(run.result("images"))
    images = images.assign(id=run.pool["id"].to_numpy()[images["record"]])
    images = images.drop(columns="content").merge(chosen[["id", "task"]], on="id")
    files = images["image"].tolist()
    for file in files:
        check_read_back(run.image_folder, file, str(run.folder))
    looks = map_images(run.image_folder, files, _look, workers if len(files) > FEW else 0)
    images["thumbnail"] = looks
    usable = images[~images["id"].isin(images.loc[images["thumbnail"] == b"", "id"])]
    usable = usable.assign(group=groups_of_thumbnails(list(usable["thumbnail"])))  # (n,)
    alike_to = near_duplicates_to_drop(usable, "keep_one", by_task=True)
    groups = [sorted([str(first), *others.index]) for first, others in alike_to.groupby(alike_to)]
    return sorted(groups, key=lambda group: (-len(group), group))


def _described(name: str, run: RunRecord, groups: Sequence[Sequence[str]]) -> NearDuplicateGroups:
    members = sum(map(len, groups))
    sampled = len(run.chosen) > _COMPARED
    what = (
        f"Of {_COMPARED:,} images, a random part of what {name} chose" if sampled else f"Of what {name} chose"
    )
    if not members:
        return NearDuplicateGroups(f"{what}, no two of one task are near-duplicates.", [])
    rows = []
    for group in groups[:_SHOWN]:
        names = group[:_MEMBERS]
        files = zip(run.images_of(names), names, strict=True)
        pictures = [picture(run.image_folder / file, one) for file, one in files]
        rows.append(PictureRow(f"{len(group)} alike", pictures))
    number = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
    largest = f", of which the {_SHOWN} largest are shown" if len(groups) > _SHOWN else ""
    return NearDuplicateGroups(
        f"{what}, {members:,} show nearly the same as another one of their task, in {number}{largest}; "
        "pool.near_duplicates=keep_one leaves all but one of each group out of the pool.",
        rows,
    )


def _look(root: Path, image: str) -> bytes:
    """What an image is compared by; empty if it is broken."""
    try:
        return thumbnail(open_image(root / image)).tobytes()
    except BrokenImage:
        return b""
