"""Pools that are WebDataset shards: tar files in which the members of a sample share a key.

Not the library `webdataset`: its errors name neither shard nor sample, and it can run commands (`pipe:` URLs)
and unpickle members.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from presel.component import component
from presel.data.checks import check_name, check_path, check_text, shown
from presel.data.images import SUFFIXES, fingerprint
from presel.data.packed_images import PackedImage, PackedImages
from presel.data.tar_files import WholeTar, open_tar
from presel.errors import PreselError
from presel.storage.stage import fields_identity

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# Larger files could not be decoded or parsed within the memory allowed for one image.
_MAX_IMAGE_BYTES = 256 << 20
_MAX_TASK_BYTES = 16 << 20
# Members that an error message lists.
_MAX_LISTED = 6


@component
class WebDataset(PackedImages):
    """Tar files of samples, each with one image; its id consists of the shard's name and the sample's key.

    Attributes:
        shards: Path of the shards, with ranges (`{000..009}`), or with `*` in the file's name.
        image_key: Extension of the image members, as in `jpg`; None for any image.
        task_key: Extension of the members that contain the task, as in `cls`; None if there are none.
        task_field: The task's key in that member, if it is JSON.
        task_pattern: Used instead of a member if given: regular expression searched for in the shard's file
            name; its first group, or the whole match, is the task.
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

    @cached_property
    def content(self) -> dict[str, Any]:
        """The key of the unpacked shards."""
        return {"shards": self.unpacked.key}

    def open(self) -> "TarShards":
        """The shards, which must exist."""
        shards = find_shards(self.shards)
        task_key = self.task_key if self.task_pattern is None else None
        # Endings of members are in lower case and without their dot.
        image_key, task_key = (key and key.lower().removeprefix(".") for key in (self.image_key, task_key))
        return TarShards(shards, image_key, task_key, self.task_field, self.task_pattern)


def find_shards(pattern: str) -> tuple[Path, ...]:
    """Expands ranges and wildcards of a path.

    Raises:
        PreselError: If a shard is missing.
    """
    found: list[Path] = []
    for path in map(Path, _expanded(pattern)):
        shards = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
        # Within the loop, because a mistyped range may name billions of shards.
        for shard in shards or [path]:
            # A pipe is rejected too: opening it would block.
            if not shard.is_file():
                raise PreselError(f"{shard}: there is no such shard; check pool.shards")
        found += shards
    if not found:
        raise PreselError(f"{pattern}: its range is empty; check pool.shards")
    return tuple(found)


def _expanded(pattern: str) -> Iterator[str]:
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    before, after = pattern[: found.start()], pattern[found.end() :]
    for number in range(int(found[1]), int(found[2]) + 1):
        yield from _expanded(f"{before}{number:0{len(found[1])}}{after}")


class _Member(NamedTuple):
    key: str
    ending: str
    info: tarfile.TarInfo


@dataclass(frozen=True)
class TarShards:
    """The archive of a `WebDataset`, which documents the fields.

    Hidden members are skipped; of the others only images and task members are read.
    """

    shards: tuple[Path, ...]
    image_key: str | None
    task_key: str | None
    task_field: str | None
    task_pattern: str | None

    def identity(self) -> dict[str, Any]:
        """The fields, with names, sizes and dates of the shards in place of their paths."""
        return fields_identity(self) | {"shards": fingerprint((shard.name, shard) for shard in self.shards)}

    def parts(self) -> list[Iterator[PackedImage]]:
        """A part for each shard."""
        return [self._images(shard) for shard in self.shards]

    def _images(self, shard: Path) -> Iterator[PackedImage]:
        seen: set[str] = set()
        try:
            task = self._task_of_shard(shard)
            with open_tar(shard) as archive:
                for key, members in groupby(_members(archive), lambda member: member.key):
                    if key in seen:
                        raise PreselError(
                            f"sample {shown(key)} occurs twice; give every sample a key of its own, which "
                            "ends at the first dot of the name, and put its members next to one another"
                        )
                    seen.add(key)
                    yield self._image(archive, members, f"{shard.name.partition('.tar')[0]}/{key}", task)
                if not seen:
                    raise PreselError("it contains no sample; fetch it again, or remove it from pool.shards")
        except PreselError as error:
            raise PreselError(f"{shard}: {error}") from None

    def _image(
        self, archive: WholeTar, members: Iterable[_Member], name: str, task: str | None
    ) -> PackedImage:
        names: list[str] = []
        n_images, suffix, data = 0, "", b""
        for _, ending, info in members:
            names.append(info.name)
            if self._is_image(ending):
                n_images += 1
                # Further images are counted, not read: they are an error.
                if n_images == 1:
                    suffix = PurePosixPath(info.name).suffix.lower()
                    data = archive.read(info, _MAX_IMAGE_BYTES)
            elif ending == self.task_key:
                task = self._task(archive.read(info, _MAX_TASK_BYTES), f"member {shown(info.name)}")
        if n_images != 1:
            raise PreselError(
                f"sample {shown(name)} has {n_images} images ({_listed(names)}), not one; choose one by "
                f"pool.image_key, or remove the sample{_hint_about_dots(names)}"
            )
        if self.task_key is not None and task is None:
            raise PreselError(
                f"sample {shown(name)} has no member that ends in .{self.task_key} ({_listed(names)}); set "
                f"pool.task_key, to null if no member names the task{_hint_about_dots(names)}"
            )
        return PackedImage(name, task, suffix, data)

    def _is_image(self, ending: str) -> bool:
        if self.image_key is not None:
            return ending == self.image_key
        first, dot, rest = ending.partition(".")
        # `22.05.jpg` is hardly meant as member `05.jpg` of sample `22`.
        return f".{rest if dot and first.isdigit() else ending}" in SUFFIXES

    def _task(self, data: bytes, name: str) -> str:
        try:
            value = data.decode().strip() if self.task_field is None else json.loads(data)
        except (ValueError, RecursionError) as error:
            raise PreselError(f"{name} cannot be read ({error}); write the shard again") from None
        if self.task_field is not None:
            name = f"'{self.task_field}' in {name}"
            value = value.get(self.task_field) if isinstance(value, dict) else None
        return check_name(value, name, "name the task there")

    def _task_of_shard(self, shard: Path) -> str | None:
        if self.task_pattern is None:
            return None
        found = re.search(self.task_pattern, shard.name)
        if found is None:
            raise PreselError("pool.task_pattern does not match the shard's name; correct it")
        task = found[1] if found.re.groups else found[0]
        return check_text(task, "the task in its name", "correct pool.task_pattern")


def _members(archive: WholeTar) -> Iterator[_Member]:
    for info in archive:
        name = info.name.removeprefix("./")
        folder, slash, file = name.rpartition("/")
        if info.isdir() or file.startswith("."):
            continue
        what, remedy = "the name of a member", "rename it"
        check_path(check_text(name, what, remedy), what, remedy)
        if not info.isreg():
            raise PreselError(f"member {shown(name)} is not a regular file; replace it by the file itself")
        stem, _, ending = file.partition(".")
        yield _Member(f"{folder}{slash}{stem}", ending.lower(), info)


def _listed(names: list[str]) -> str:
    return ", ".join(map(shown, names[:_MAX_LISTED])) + (" …" if len(names) > _MAX_LISTED else "")


def _hint_about_dots(names: list[str]) -> str:
    """A hint that dates and decimals in names change the samples' keys."""
    if not any(PurePosixPath(name).name.count(".") > 1 for name in names):
        return ""
    return "; a sample's key ends at the first dot of a name: put another character in place of dots in it"
