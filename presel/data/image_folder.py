"""Pools that are a folder of images, with a sub-folder for each task."""

import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from presel.component import component
from presel.data.checks import check_path, check_text
from presel.data.errors import OnError, refuse
from presel.data.images import SUFFIXES, image_fingerprint
from presel.data.listing import Item, Listing
from presel.data.sources import ImageSource
from presel.errors import PreselError
from presel.storage.store import Store

# Folders that systems create for thumbnails, deleted files and backups; in lower case.
_SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
        *("$recycle.bin", "recycler", "system volume information"),
        *("lost+found", "__macosx", "network trash folder", "temporary items"),
    }
)


class ImageFiles(NamedTuple):
    """A folder and its listed images."""

    images: Path
    contents: Listing

    def listing(self, on_error: OnError = refuse) -> Listing:
        """The `contents`, which have no errors: `list_folder` has checked them."""
        return self.contents


@component
class ImageFolder(ImageSource):
    """A folder of images; an image's first sub-folder is its task, its relative path its id.

    Attributes:
        images: The folder.
    """

    images: Path

    def files(self, store: Store) -> ImageFiles:
        """The folder's images."""
        return self._files

    @cached_property
    def _files(self) -> ImageFiles:
        return ImageFiles(self.images.absolute(), list_folder(self.images, self.task))

    @cached_property
    def content(self) -> dict[str, Any]:
        """Names, sizes and dates of the images."""
        images = [item.image for item in self._files.contents.items]
        return {"images": image_fingerprint(self.images, images)}


def list_folder(root: Path, task: str | None = None) -> Listing:
    """Lists every image in a folder and its sub-folders, in the order of their paths.

    Images outside a sub-folder belong to `task`.

    Raises:
        PreselError: If there is no image, or one has an invalid path.
    """
    if not root.is_dir():
        raise PreselError(f"{root}: there is no such folder; give one with a sub-folder of images per task")
    images: list[str] = []
    others: Counter[str] = Counter()
    for path in _files_in(root):
        name = path.rpartition("/")[2]
        if is_hidden(name):
            others["hidden"] += 1
        elif (suffix := PurePosixPath(name).suffix.lower()) in SUFFIXES:
            images.append(path)
        else:
            others[suffix or "without a suffix"] += 1
    try:
        items = [_item(path, task) for path in sorted(images)]
    except PreselError as error:
        raise PreselError(f"{root}: {error}") from None
    listing = Listing(items, other_files=dict(others.most_common()))
    if not items:
        found = listing.describe_skipped() or "no file"
        raise PreselError(
            f"{root}: there is no image in it or its sub-folders ({found}); give a folder with files in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    return listing


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or belongs to the system, by its name."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def _files_in(root: Path) -> Iterator[str]:
    """Paths of all files relative to `root`, and of hidden folders, which are not searched."""
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if is_hidden(entry.name) or not entry.is_dir():
                    yield path
                elif entry.is_symlink():
                    # It could lead out of the folder, or form a cycle.
                    raise PreselError(
                        f"{root / path}: a symbolic link to a folder; replace it by the folder itself"
                    )
                else:
                    folders.append(path)


def _item(path: str, task: str | None) -> Item:
    remedy = "rename it"
    check_path(check_text(path, f"the path {path!r}", remedy), "the path of an image", remedy)
    folder, inside, _ = path.partition("/")
    if inside:
        task = check_text(folder, f"the sub-folder of {path!r}", remedy)
    return Item(path, path, task)
