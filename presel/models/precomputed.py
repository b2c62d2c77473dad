"""Features that exist already: one vector for each image, in a user's file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from presel.component import component
from presel.console import progress
from presel.data.checks import check_file, shown
from presel.errors import PreselError
from presel.storage.files import drop_cached_pages, sha256
from presel.storage.stage import fields_identity

# The columns of a parquet file.
_IMAGE, _FEATURE = "image", "feature"
_LISTS = (pyarrow.ListType, pyarrow.LargeListType, pyarrow.FixedSizeListType)
# Rows read at a time, 25 MB in float32 at 768 dimensions.
_BLOCK = 8192
# A parquet file may hold all rows in one group, which would be read at once without a buffer of bytes.
_STREAMED = {"pre_buffer": False, "buffer_size": 2**20}


@component
class Precomputed:
    """Features that were computed elsewhere, one vector for each image of the pool.

    An image is named by its path relative to the pool's image folder, as the pool writes it. Rows may come in
    any order, and those of other images are ignored.

    Attributes:
        file: A `.parquet` table with the columns `image`, text, and `feature`, a list of d floating-point
            numbers; or an `.npy` array of these, (n, d).
        ids: The images of an `.npy` array's rows, n names: a `.json` list, or text in UTF-8 with one on each
            line. None for parquet.
    """

    file: Path
    ids: Path | None = None

    def __post_init__(self) -> None:
        """Checks that the files go together."""
        if self.file.suffix not in (".npy", ".parquet"):
            raise ValueError(f"file={self.file} has an unknown format; let its name end in .npy or .parquet")
        if self.file.suffix == ".npy" and self.ids is None:
            raise ValueError(f"file={self.file} names no images; name those of its rows by encoder.ids=FILE")
        if self.file.suffix == ".parquet" and self.ids is not None:
            raise ValueError(f"ids={self.ids} is not read, since {self.file} has the names; leave it out")

    def identity(self) -> dict[str, Any]:
        """The fields, with the content of the files in place of their paths.

        Raises:
            PreselError: If one is missing or cannot be read.
        """
        return fields_identity(self) | self._content

    @cached_property
    def _content(self) -> dict[str, Any]:
        self._check_files()
        return {"file": sha256(self.file), "ids": None if self.ids is None else sha256(self.ids)}

    def check(self) -> None:
        """Checks all but the vectors, which are not read.

        Raises:
            PreselError: If a file cannot be read or has another form, or names an image twice.
        """
        self._names()

    def check_images(self, images: "pd.Series[str]") -> None:
        """Checks the vectors of some images, in one pass over the file.

        Args:
            images: Their names, (m,).

        Raises:
            PreselError: If an image has no vector, or one that is NaN, infinite or zero in half precision.
        """
        rows = self.rows(images)
        order = np.argsort(rows, kind="stable")
        in_order = rows[order]
        start = 0
        with progress("checking features", len(rows)) as advance:
            for block in self.blocks():
                low, high = np.searchsorted(in_order, [start, start + len(block)])
                used = block[in_order[low:high] - start]  # (images of the block, d)
                for fault, found in (
                    ("holds NaN, an infinite value or one above 65,504", ~np.isfinite(used).all(axis=1)),
                    ("is zero in half precision", ~used.any(axis=1)),
                ):
                    if found.any():
                        first = order[low:high][found][0]
                        raise self._refused(
                            f"the feature of {shown(images.iloc[first])}, in row {rows[first]} from 0, "
                            f"{fault}; compute it again, or leave its records out by pool.exclude"
                        )
                start += len(block)
                advance(int(high - low))

    def rows(self, images: "pd.Series[str]") -> NDArray[np.intp]:
        """The rows of some images by their names, (m,) each.

        Raises:
            PreselError: If an image has none, or as `check`.
        """
        names = self._names()
        rows: NDArray[np.intp] = names.get_indexer(pd.Index(images, dtype=object))
        missing = images[rows < 0]
        if len(missing):
            raise self._refused(
                f"{missing.nunique():,} of the pool's {images.nunique():,} images have no feature (first: "
                f"{shown(missing.iloc[0])}; the file's first name is {shown(names[0])}); name images as the "
                "pool does, by their paths relative to pool.images, or leave records out by pool.exclude"
            )
        return rows

    def blocks(self) -> Iterator[NDArray[np.float16]]:
        """Reads all vectors in the order of the file, in half precision, not normalized.

        Yields:
            The next vectors, (block, d); values above 65,504 are infinite.

        Raises:
            PreselError: If the file cannot be read, or its vectors have several lengths.
        """
        for block in self._blocks_of_table() if self.ids is None else self._blocks_of_array():
            with np.errstate(over="ignore"):
                half = block.astype(np.float16)
            yield half

    def _names(self) -> pd.Index:
        """The names of the images, row by row, (n,)."""
        self._check_files()
        if self.ids is None:
            key = "file"
            with self._table() as table:
                names = table.read(columns=[_IMAGE])[_IMAGE].to_pylist()
        else:
            key = "ids"
            names = self._listed()
            if len(names) != (n := len(self._array())):
                raise self._refused(f"it has {len(names):,} names for the {n:,} rows of {self.file}", key)
        for row, name in enumerate(names):
            if not isinstance(name, str):
                raise self._refused(
                    f"row {row} from 0 is named {shown(name)}; name an image by its path", key
                )
        index: pd.Index = pd.Index(names, dtype=object)
        repeated = np.flatnonzero(index.duplicated())
        if len(repeated):
            name, row = names[repeated[0]], repeated[0]
            raise self._refused(
                f"{shown(name)} is in rows {names.index(name)} and {row} from 0; give each image one row", key
            )
        return index

    def _listed(self) -> list[Any]:
        """What the file of names holds."""
        assert self.ids is not None
        with self._reading("ids"):
            text = self.ids.read_text(encoding="utf-8-sig")
            if self.ids.suffix != ".json":
                return text.removesuffix("\n").split("\n")
            names = json.loads(text)
        if not isinstance(names, list):
            raise self._refused("it is no JSON list; write the names as one", "ids")
        return names

    def _array(self) -> NDArray[Any]:
        """The array of an `.npy` file, (n, d), memory-mapped."""
        with self._reading("file"):
            array: NDArray[Any] = np.lib.format.open_memmap(self.file, mode="r")
        if array.ndim != 2 or not array.size or array.dtype.kind != "f":
            raise self._refused(
                f"it has shape {array.shape} and type {array.dtype}; store floating-point numbers, a row for "
                "each image"
            )
        return array

    def _blocks_of_array(self) -> Iterator[NDArray[Any]]:
        array = self._array()
        for start in range(0, len(array), _BLOCK):
            yield array[start : start + _BLOCK]
            drop_cached_pages(array)

    @contextmanager
    def _table(self) -> Iterator[Any]:
        """The parquet file, whose columns are as they should be."""
        with self._reading("file"), pyarrow.parquet.ParquetFile(self.file, **_STREAMED) as table:
            schema = table.schema_arrow
            for name in (_IMAGE, _FEATURE):
                if schema.names.count(name) != 1:
                    raise self._refused(
                        f"it has no single column '{name}' among {', '.join(map(shown, schema.names))}; name "
                        f"two '{_IMAGE}' and '{_FEATURE}'"
                    )
            kind = schema.field(_FEATURE).type
            if not (isinstance(kind, _LISTS) and pyarrow.types.is_floating(kind.value_type)):
                raise self._refused(
                    f"column '{_FEATURE}' is of type {kind}; write lists of floating-point numbers"
                )
            yield table

    def _blocks_of_table(self) -> Iterator[NDArray[Any]]:
        row = dimensions = 0
        with self._table() as table:
            for batch in table.iter_batches(_BLOCK, columns=[_FEATURE]):
                lists = batch.column(0)
                lengths = pyarrow.compute.list_value_length(lists).fill_null(0).to_numpy()
                dimensions = dimensions or int(lengths[0])
                odd = np.flatnonzero((lengths != dimensions) | (lengths == 0))
                if len(odd):
                    raise self._refused(
                        f"row {row + odd[0]} from 0 holds {lengths[odd[0]]} numbers and the first "
                        f"{dimensions}; write as many for each image"
                    )
                row += len(lengths)
                yield lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions)

    def _check_files(self) -> None:
        for key, file in (("file", self.file), ("ids", self.ids)):
            if file is not None:
                try:
                    check_file(file)
                except PreselError as error:
                    raise PreselError(f"encoder.{key}: {error}") from error

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Explains the errors of the libraries that read a file."""
        try:
            yield
        except (pyarrow.ArrowException, OSError, ValueError, RecursionError) as error:
            raise self._refused(f"it cannot be read ({shown(str(error))}); write it again", key) from error

    def _refused(self, reason: str, key: str = "file") -> PreselError:
        return PreselError(f"encoder.{key}: {getattr(self, key)}: {reason}")
