"""Checks of all images of a pool before any work, in shards from which an interrupted check goes on."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from presel.data.decoding import BrokenImage
from presel.data.images import check_root, map_in_order, open_usable
from presel.data.near_duplicates import thumbnail
from presel.storage.executor import Sharded
from presel.storage.files import atomic, checked, sha256
from presel.storage.shards import Batches, Shards, chunks
from presel.storage.store import Store

Found = TypeVar("Found")

# Images whose results are reported together.
_CHUNK = 64


class Checked(NamedTuple):
    """The result of checking an image file.

    Attributes:
        fault: Why it cannot be used, or None.
        content: SHA-256 of the file's bytes, equal for copies; None if there is a fault.
        thumbnail: RGB pixels by which near-duplicates are found, row by row; empty unless asked for.
    """

    fault: str | None
    content: str | None
    thumbnail: bytes = b""


def check_image(root: Path, image: str, min_side: int = 2, with_thumbnail: bool = False) -> Checked:
    """Decodes an image below `root`, to find whether it can be used, and what it is a copy of.

    `min_side` is the smallest usable width and height, in pixels.
    """
    try:
        path, picture = open_usable(root, image, min_side)
    except BrokenImage as error:
        return Checked(error.reason, None)
    shown = thumbnail(picture.image).tobytes() if with_thumbnail else b""
    return Checked(None, sha256(path), shown)


def for_each_image(
    store: Store,
    folder: Path,
    root: Path,
    images: Sequence[str],
    function: Callable[[Path, str], Found],
    kind: type[Found],
    workers: int,
) -> list[Found]:
    """Applies a function to every image of a pool, in shards that the store's executor computes.

    Args:
        store: The store.
        folder: Where the shards are kept, from which an interrupted call goes on.
        root: The image folder.
        images: Paths relative to it; repeated ones are processed once.
        function: Takes the folder, all links resolved, and one path; picklable.
        kind: What it returns, a named tuple of values that parquet can hold.
        workers: Number of worker processes; 0 uses this process. The result does not depend on it.

    Returns:
        The function's result for each image.

    Raises:
        PreselError: If there is no such folder, or a worker process dies.
    """
    different = list(dict.fromkeys(images))
    work = ImageWork(root=root, images=different, function=function, workers=workers)
    rows = store.executor.compute(work, store, folder).rows()
    found = {image: kind(**row) for image, row in zip(different, rows, strict=True)}
    return [found[image] for image in images]


class RowShards(Shards[str, list[Any]]):
    """Shards of named tuples."""

    suffix: ClassVar[str] = ".parquet"

    def write(self, file: Path, results: list[list[Any]]) -> None:
        """Writes one row per tuple."""
        # Imported here, since worker processes that open images need neither the time nor the memory.
        from pyarrow import Table, parquet

        rows = [row._asdict() for batch in results for row in batch]
        with atomic(file, with_digest=True) as temporary:
            # Not by pandas, which has several values for none.
            parquet.write_table(Table.from_pylist(rows), temporary)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, in the order of the items.

        Raises:
            PreselError: If a shard is damaged.
        """
        from pyarrow import parquet

        for file in self.files:
            yield from parquet.read_table(checked(file)).to_pylist()


@dataclass(frozen=True, kw_only=True)
class ImageWork(Sharded):
    """A function applied to every image of a pool; see `for_each_image`."""

    root: Path
    images: Sequence[str]
    function: Callable[[Path, str], Any]
    workers: int

    def shards(self, store: Store, folder: Path) -> RowShards:
        """The images.

        Raises:
            PreselError: If there is no such folder.
        """
        check_root(self.root)
        apply = partial(self.function, Path(os.path.realpath(self.root)))

        def compute(batches: Batches[str]) -> Iterator[list[Any]]:
            found = map_in_order(apply, [image for batch in batches for image in batch], self.workers)
            for batch in batches:
                yield list(islice(found, len(batch)))

        return RowShards(
            folder=folder / "shards",
            items=self.images,
            label="checking images",
            to_batches=lambda shard: list(chunks(shard, _CHUNK)),
            compute_batches=compute,
        )

    def with_workers(self, workers: int) -> "ImageWork":
        """The same with other worker processes."""
        return replace(self, workers=workers)
