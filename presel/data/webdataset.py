"""Pools that are WebDataset shards."""

import re
from collections.abc import Iterator
from pathlib import Path

from presel.component import component
from presel.data.packed_images import PackedImages
from presel.data.tar_shards import TarShards
from presel.errors import PreselError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@component
class WebDataset(PackedImages):
    """Tar files of samples, each with one image; its id is made of the shard's name and the sample's key.

    Attributes:
        shards: Path of the shards, with ranges (`{000..009}`), or with `*` in the file's name.
        image_key: What names of the image members end in after the key, as in `jpg`; None for any image.
        task_key: What names of the members end in that hold the task, as in `cls`; None if there are none.
        task_field: The task's key in that member, if it is JSON.
        task_pattern: Used instead of a member if given: regular expression searched for in the shard's file
            name; its first group, or all that it matches, is the task.
    """

    shards: str
    image_key: str | None = None
    task_key: str | None = "cls"
    task_field: str | None = None
    task_pattern: str | None = None

    def __post_init__(self) -> None:
        """Checks the pattern."""
        try:
            re.compile(self.task_pattern or "")
        except re.error as error:
            raise ValueError(f"task_pattern is not a regular expression ({error})") from None

    def open(self) -> TarShards:
        """The shards, which must be there."""
        task_key = self.task_key if self.task_pattern is None else None
        return TarShards(
            find_shards(self.shards), self.image_key, task_key, self.task_field, self.task_pattern
        )


def find_shards(pattern: str) -> tuple[Path, ...]:
    """Finds the shards that a path stands for.

    Raises:
        PreselError: If one is missing.
    """
    found: list[Path] = []
    for path in map(Path, _expanded(pattern)):
        shards = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
        for shard in shards or [path]:
            # Nor is a pipe one: opening it would wait forever.
            if not shard.is_file():
                raise PreselError(f"{shard}: there is no such shard; check pool.shards")
        found += shards
    if not found:
        raise PreselError(f"{pattern}: its range stands for no shard; check pool.shards")
    return tuple(found)


def _expanded(pattern: str) -> Iterator[str]:
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    before, after = pattern[: found.start()], pattern[found.end() :]
    for number in range(int(found[1]), int(found[2]) + 1):
        yield from _expanded(f"{before}{number:0{len(found[1])}}{after}")
