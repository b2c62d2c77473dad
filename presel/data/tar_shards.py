"""Tar files in the layout of WebDataset: members of a sample share a key and follow one another.

Read by Python's own `tarfile`: the library `webdataset` would also run commands and unpickle members.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from presel.data.archive import PackedImage
from presel.data.checks import check_name, check_path, check_text, shown
from presel.data.images import SUFFIXES, fingerprint
from presel.data.tar_files import WholeTar, open_tar
from presel.errors import PreselError

# A larger image could not be decoded in the memory allowed for one, nor a larger JSON text be parsed in it.
_MAX_IMAGE_BYTES = 256 << 20
_MAX_TASK_BYTES = 16 << 20
# Members that an error names.
_LISTED = 6


class _Member(NamedTuple):
    key: str
    ending: str
    info: tarfile.TarInfo


@dataclass(frozen=True)
class TarShards:
    """The archive behind `presel.data.webdataset.WebDataset`, which tells what the fields are.

    Hidden members are left out; of the others only images are read, and what names the task.
    """

    shards: tuple[Path, ...]
    image_key: str | None
    task_key: str | None
    task_field: str | None
    task_pattern: str | None

    def identity(self) -> dict[str, Any]:
        """Names, sizes and dates of the shards; where images and tasks are found."""
        return {
            "shards": fingerprint((shard.name, shard) for shard in self.shards),
            "read": [self.image_key, self.task_key, self.task_field, self.task_pattern],
        }

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
                    raise PreselError("it holds no sample; fetch it again, or leave it out of pool.shards")
        except PreselError as error:
            raise PreselError(f"{shard}: {error}") from None

    def _image(
        self, archive: WholeTar, members: Iterable[_Member], name: str, task: str | None
    ) -> PackedImage:
        names: list[str] = []
        images: list[tuple[str, bytes]] = []
        n_images = 0
        for _, ending, info in members:
            names.append(info.name)
            if self._is_image(ending):
                n_images += 1
                # One is enough to tell that there are too many.
                if n_images == 1:
                    suffix = PurePosixPath(info.name).suffix.lower()
                    images.append((suffix, archive.read(info, _MAX_IMAGE_BYTES)))
            elif ending == self.task_key:
                task = self._task(archive.read(info, _MAX_TASK_BYTES), f"member {shown(info.name)}")
        if n_images != 1:
            raise PreselError(
                f"sample {shown(name)} has {n_images} images ({_listed(names)}), not one; choose one by "
                f"pool.image_key, or remove the sample{_of_dots(names)}"
            )
        if self.task_key is not None and task is None:
            raise PreselError(
                f"sample {shown(name)} has no member that ends in .{self.task_key} ({_listed(names)}); set "
                f"pool.task_key, to null where no member names the task{_of_dots(names)}"
            )
        return PackedImage(name, task, *images[0])

    def _is_image(self, ending: str) -> bool:
        if self.image_key is not None:
            return ending == self.image_key
        first, dot, rest = ending.partition(".")
        # As in `22.05.jpg`, which is hardly meant as member `05.jpg` of sample `22`.
        return f".{rest if dot and first.isdigit() else ending}" in SUFFIXES

    def _task(self, data: bytes, name: str) -> str:
        try:
            value = data.decode().strip() if self.task_field is None else json.loads(data)
        except (ValueError, RecursionError) as error:
            raise PreselError(f"{name} cannot be read ({error}); make the shard anew") from None
        if self.task_field is not None:
            name = f"'{self.task_field}' in {name}"
            value = value.get(self.task_field) if isinstance(value, dict) else None
        return check_name(value, name, "name the task there")

    def _task_of_shard(self, shard: Path) -> str | None:
        if self.task_pattern is None:
            return None
        found = re.search(self.task_pattern, shard.name)
        if found is None:
            raise PreselError("pool.task_pattern is not found in the shard's name; mend it")
        task = found[1] if found.re.groups else found[0]
        return check_text(task, "the task in its name", "mend pool.task_pattern")


def _members(archive: WholeTar) -> Iterator[_Member]:
    for info in archive:
        name = info.name.removeprefix("./")
        folder, slash, file = name.rpartition("/")
        if info.isdir() or file.startswith("."):
            continue
        what, remedy = "the name of a member", "rename it"
        check_path(check_text(name, what, remedy), what, remedy)
        if not info.isreg():
            raise PreselError(f"member {shown(name)} is no ordinary file; put the file itself in its place")
        stem, _, ending = file.partition(".")
        yield _Member(f"{folder}{slash}{stem}", ending.lower(), info)


def _listed(names: list[str]) -> str:
    return ", ".join(map(shown, names[:_LISTED])) + (" …" if len(names) > _LISTED else "")


def _of_dots(names: list[str]) -> str:
    """What people overlook who put dates or decimals into names."""
    if not any(PurePosixPath(name).name.count(".") > 1 for name in names):
        return ""
    return "; a sample's key ends at the first dot of a name: put another character in place of dots in it"
