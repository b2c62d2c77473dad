"""Checked feature vectors of a task, read in blocks: NumPy memory maps, with normalization on reading."""

import hashlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from presel.selection.arrays import (
    Float32Matrix,
    Float32Vector,
    FloatMatrix,
    FloatVector,
    IntVector,
    round_for_ties,
)

# Floats per block, 25 MB in float32: 8,192 rows of 768 dimensions, enough for BLAS to run at full speed.
_BLOCK = 8192 * 768
# Floats per block in float64, 1.6 MB.
_CACHED = 256 * 768
# Below this size, a float32 working copy is cheaper than converting or gathering the rows on every pass.
_WORKING_COPY_BYTES = 32 * 2**20
# Norms whose squares, and sums of many such squares, float32 can represent.
_MIN_NORM, _MAX_NORM = 1e-16, 1e16


class FeatureRows:
    """Feature vectors of any floating-point type, in memory or memory-mapped.

    Blocks are converted to float32, picked by row and, if asked for, centered and L2-normalized as they are
    read; float32 rows that need none of that are returned as views.

    Attributes:
        dimension: Dimension d of a vector.
    """

    _center: Float32Vector | None
    _scale: Float32Vector | None

    def __init__(
        self,
        features: npt.ArrayLike,
        *,
        index: IntVector | None = None,
        center: bool = False,
        normalize: bool = False,
        ids: Collection[Any] | None = None,
    ) -> None:
        """Checks every vector, in one pass over the rows.

        Args:
            features: Shape (n, d), floating point; a memory map stays on disk.
            index: The rows to use, in the order to use them in; None for all.
            center: Whether to subtract the mean of these rows from every vector first.
            normalize: Whether to divide every vector by its norm.
            ids: Names of the rows of `features` for error messages; None for row numbers.

        Raises:
            ValueError: If the array has another shape or no row, `index` or `ids` do not fit it, or a vector
                has a NaN, an infinite value or norm 0, or a norm whose square overflows or underflows
                float32; or if a vector is the mean that is subtracted.
        """
        array = features if isinstance(features, np.ndarray) else np.asarray(features)
        if array.ndim != 2 or not array.shape[0] or not array.shape[1]:
            raise ValueError(f"features have shape {array.shape}; one vector per image, (n, d), is needed")
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"features have type {array.dtype}; floating point is needed")
        if ids is not None and len(ids) != len(array):
            raise ValueError(f"there are {len(ids)} ids for {len(array)} vectors; one per vector is needed")
        if index is not None and not (len(index) and index.min() >= 0 and index.max() < len(array)):
            raise ValueError(f"index must name one or more of the {len(array)} rows")
        offset = 0
        if index is not None and np.array_equal(index, np.arange(index[0], index[0] + len(index))):
            offset = int(index[0])
            array, index = array[offset : offset + len(index)], None
        self._set(array, index, None, None)
        norms = self._checked_norms(offset, ids)
        if center:
            self._center = self._mean()
            norms = self._checked_norms(offset, ids)
        if normalize and (np.abs(norms - 1) > 1e-6).any():
            self._scale = (1 / norms).astype(np.float32)

    @classmethod
    def trusted(
        cls,
        array: npt.NDArray[Any],
        index: IntVector | None = None,
        center: Float32Vector | None = None,
        scale: Float32Vector | None = None,
    ) -> Self:
        """Wraps checked vectors, (n, d); `center`, (d,), is subtracted, then `scale`, (n,), multiplies."""
        rows = cls.__new__(cls)
        rows._set(array, index, center, scale)
        return rows

    def _set(
        self,
        array: npt.NDArray[Any],
        index: IntVector | None,
        center: Float32Vector | None,
        scale: Float32Vector | None,
    ) -> None:
        self._array, self._index, self._center, self._scale = array, index, center, scale
        self.dimension: int = array.shape[1]

    @classmethod
    def of(cls, features: "npt.ArrayLike | FeatureRows", ids: Collection[Any] | None = None) -> "FeatureRows":
        """Checks an array; `FeatureRows` are returned as they are."""
        return features if isinstance(features, FeatureRows) else cls(features, ids=ids)

    def __len__(self) -> int:
        """Counts the rows."""
        return len(self._array) if self._index is None else len(self._index)

    def block(self, start: int, stop: int) -> Float32Matrix:
        """Reads consecutive rows, (stop - start, d); read-only, since it may be a view of the array."""
        rows = self._array[start:stop] if self._index is None else self._array[self._index[start:stop]]
        return self._finish(rows, None if self._scale is None else self._scale[start:stop])

    def take(self, positions: IntVector) -> Float32Matrix:
        """Reads given rows into a new array, shape (len(positions), d)."""
        rows = self._array[positions if self._index is None else self._index[positions]]
        return self._finish(rows, None if self._scale is None else self._scale[positions])

    def blocks(self) -> Iterator[tuple[slice, Float32Matrix]]:
        """Reads all rows in order: the slice of each block, and its rows, (block, d)."""
        step = max(1, _BLOCK // self.dimension)
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            yield slice(start, stop), self.block(start, stop)

    def subset(self, positions: IntVector) -> Self:
        """A subset of the rows, without reading or checking them again."""
        index = positions if self._index is None else self._index[positions]
        scale = None if self._scale is None else self._scale[positions]
        return self.trusted(self._array, index, self._center, scale)

    def content_order(self, keys: FloatVector | None = None) -> IntVector:
        """An order of the rows, (n,), that depends on the vectors alone, not on their order or names.

        The sort key is the cosine to a fixed random direction, rounded, then a digest of the row as it is
        stored, since millions of rows have equal keys here and there; equal rows keep their order.

        Args:
            keys: The rows' `content_keys`, if they are known.
        """
        keys = self.content_keys() if keys is None else keys
        order = np.argsort(keys, kind="stable")
        equal = np.diff(keys[order]) == 0  # (n - 1,), whether a key equals the next
        tied = np.append(equal, False) | np.append(False, equal)  # (n,), in that order
        rows = np.sort(order[tied])  # as they lie in the file
        order[tied] = rows[np.lexsort((self._digests(rows), keys[rows]))]
        return order

    def content_keys(self) -> FloatVector:
        """The keys by which `content_order` sorts, (n,)."""
        direction = np.random.default_rng(0).standard_normal(self.dimension)
        keys = np.empty(len(self))
        for place, rows in self._float64_blocks():
            keys[place] = rows @ direction / np.sqrt(np.einsum("ij,ij->i", rows, rows))
        return round_for_ties(keys)

    def for_many_passes(self) -> Self:
        """A float32 copy if it is small, which saves the conversion on each pass; else these rows."""
        as_is = self._index is None and self._center is None and self._scale is None
        plain = as_is and self._array.dtype == np.float32
        if plain or len(self) * self.dimension * 4 > _WORKING_COPY_BYTES:
            return self
        return self.trusted(np.ascontiguousarray(self.block(0, len(self))))

    def _finish(self, rows: npt.NDArray[Any], scale: Float32Vector | None) -> Float32Matrix:
        block: Float32Matrix = np.asarray(rows, dtype=np.float32)
        if self._center is not None:
            block = block - self._center
        return block if scale is None else block * scale[:, None]

    def _float64_blocks(self) -> Iterator[tuple[slice, FloatMatrix]]:
        """Reads all rows in order, in blocks whose float64 copy fits into the CPU's cache."""
        step = max(1, _CACHED // self.dimension)
        for place, block in self.blocks():
            for start in range(0, len(block), step):
                rows = block[start : start + step].astype(np.float64)
                yield slice(place.start + start, place.start + start + len(rows)), rows

    def _digests(self, positions: IntVector) -> npt.NDArray[np.uint64]:
        rows = positions if self._index is None else self._index[positions]
        digests = (hashlib.blake2b(self._array[row].tobytes(), digest_size=8).digest() for row in rows)
        return np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64, len(rows))

    def _mean(self) -> Float32Vector:
        total = np.zeros(self.dimension)
        for _, rows in self._float64_blocks():
            total += rows.sum(axis=0)
        return (total / len(self)).astype(np.float32)

    def _checked_norms(self, offset: int, ids: Collection[Any] | None) -> FloatVector:
        norms = np.empty(len(self))
        for place, rows in self._float64_blocks():
            norms[place] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        bad = ~((norms > _MIN_NORM) & (norms < _MAX_NORM))
        if bad.any():
            first = int(np.argmax(bad))
            row = first + offset if self._index is None else int(self._index[first])
            name = row if ids is None else list(ids)[row]
            what = f"has the norm {norms[first]:g}, which float32 cannot square; scale it"
            remedy = "remove these images or compute their features again"
            if norms[first] == 0 and self._center is not None:
                what = "equals the mean, which is subtracted"
                remedy = "do not subtract it (center=false; strategy.center=false in a run)"
            elif norms[first] == 0:
                what = "is all zeros"
            elif not np.isfinite(norms[first]):
                what = "has NaN or infinite values"
            raise ValueError(
                f"the feature vector of row {name!r} {what} ({int(bad.sum())} such rows in all); {remedy}"
            )
        return norms


class Features(NamedTuple):
    """Vectors on disk: `ids[i]` names row `i` of `array`, (n, d), not normalized; float16 for features."""

    ids: pd.Series
    array: npt.NDArray[np.floating]

    def by_id(self, normalize: bool = False) -> tuple[npt.NDArray[np.str_], FeatureRows]:
        """Ids in ascending order, (n,), and the features in that order; see `FeatureRows`."""
        names = self.ids.to_numpy(dtype=str)
        order = np.argsort(names)
        return names[order], FeatureRows(self.array, index=order, normalize=normalize, ids=names.tolist())

    def rows_of(self, wanted: pd.Series, *, center: bool = False) -> FeatureRows:
        """Features of some images, in the order of their ids, L2-normalized as they are read.

        Args:
            wanted: Ids of the images.
            center: Whether to subtract their mean first.
        """
        index = pd.Index(self.ids).get_indexer(pd.Index(wanted))
        return FeatureRows(self.array, index=index, center=center, normalize=True, ids=self.ids.tolist())
