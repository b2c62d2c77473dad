"""Checked access to the feature vectors of a task, a block at a time."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from numpy.typing import NDArray

Float32Matrix = npt.NDArray[np.float32]
IntVector = npt.NDArray[np.int64]

# Floats per block, 25 MB in float32: 8,192 rows of 768 numbers, large enough for BLAS to run at full speed.
_BLOCK = 8192 * 768
# Floats per block in float64, 1.6 MB.
_CACHED = 256 * 768
# Below this, a float32 working copy is cheaper than converting or gathering the rows on every pass.
_WORKING_COPY_BYTES = 32 * 2**20
# Lengths whose squares, and sums of many such squares, float32 holds.
_SHORTEST, _LONGEST = 1e-16, 1e16


class FeatureRows:
    """Feature vectors of any floating point, in memory or memory-mapped; only small ones are ever copied.

    Blocks are converted to float32, picked by row and, if asked, L2-normalized as they are read; float32 rows
    that need none of that are passed on as views.

    Attributes:
        dimension: Length d of a vector.
    """

    _array: npt.NDArray[Any]
    _index: IntVector | None
    _scale: npt.NDArray[np.float32] | None

    def __init__(
        self,
        features: npt.ArrayLike,
        *,
        index: IntVector | None = None,
        normalize: bool = False,
        ids: Sequence[Any] | None = None,
    ) -> None:
        """Checks every vector, in one pass over the rows.

        Args:
            features: Shape (n, d), floating point; a memory map stays on disk.
            index: The rows that count, in the order in which they count; None for all.
            normalize: Whether to divide every vector by its length.
            ids: Names of the rows of `features` for error messages; None for row numbers.

        Raises:
            ValueError: If the array has another shape or no row, `index` or `ids` do not fit it, or a vector
                has a NaN, an infinite value or length zero, or is so long or short that its square is no
                float32.
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
        self._set(array, index, None)
        norms = self._checked_norms(offset, ids)
        if normalize and (np.abs(norms - 1) > 1e-6).any():
            self._scale = (1 / norms).astype(np.float32)

    @classmethod
    def trusted(
        cls,
        array: npt.NDArray[Any],
        index: IntVector | None = None,
        scale: npt.NDArray[np.float32] | None = None,
    ) -> Self:
        """Wraps vectors that need no check; `scale` multiplies each row."""
        rows = cls.__new__(cls)
        rows._set(array, index, scale)
        return rows

    def _set(
        self, array: npt.NDArray[Any], index: IntVector | None, scale: npt.NDArray[np.float32] | None
    ) -> None:
        self._array, self._index, self._scale = array, index, scale
        self.dimension: int = array.shape[1]

    @classmethod
    def of(cls, features: "npt.ArrayLike | FeatureRows", ids: Sequence[Any] | None = None) -> "FeatureRows":
        """Checks an array; rows that were checked already pass as they are."""
        return features if isinstance(features, FeatureRows) else cls(features, ids=ids)

    def __len__(self) -> int:
        """Counts the rows."""
        return len(self._array) if self._index is None else len(self._index)

    def block(self, start: int, stop: int) -> Float32Matrix:
        """Reads consecutive rows.

        Returns:
            Shape (stop - start, d); not to be written to, since it may be the array itself.
        """
        rows = self._array[start:stop] if self._index is None else self._array[self._index[start:stop]]
        return self._finish(rows, None if self._scale is None else self._scale[start:stop])

    def take(self, positions: IntVector) -> Float32Matrix:
        """Reads chosen rows into a new array, shape (len(positions), d)."""
        rows = self._array[positions if self._index is None else self._index[positions]]
        return self._finish(rows, None if self._scale is None else self._scale[positions])

    def blocks(self) -> Iterator[tuple[slice, Float32Matrix]]:
        """Reads all rows in order, with the place of each block."""
        step = max(1, _BLOCK // self.dimension)
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            yield slice(start, stop), self.block(start, stop)

    def subset(self, positions: IntVector) -> Self:
        """Restricts to some rows; they were checked already and are not read."""
        index = positions if self._index is None else self._index[positions]
        return self.trusted(self._array, index, None if self._scale is None else self._scale[positions])

    def content_order(self) -> IntVector:
        """Sorts rows by what they hold, so that neither their order nor their names matter to what follows.

        The key is the cosine to a fixed random direction; its rounding swaps next to no distinct rows. Equal
        rows keep their order.
        """
        direction = np.random.default_rng(0).standard_normal(self.dimension)
        keys = np.empty(len(self))
        for place, rows in self._float64_blocks():
            keys[place] = rows @ direction / np.sqrt(np.einsum("ij,ij->i", rows, rows))
        return np.argsort(np.round(keys, 9), kind="stable")

    def for_many_passes(self) -> Self:
        """Holds a small task in float32, so that passes cost no conversion; a large one stays as it is."""
        plain = self._index is None and self._scale is None and self._array.dtype == np.float32
        if plain or len(self) * self.dimension * 4 > _WORKING_COPY_BYTES:
            return self
        return self.trusted(np.ascontiguousarray(self.block(0, len(self))))

    @staticmethod
    def _finish(rows: npt.NDArray[Any], scale: npt.NDArray[np.float32] | None) -> Float32Matrix:
        block: Float32Matrix = np.asarray(rows, dtype=np.float32)
        return block if scale is None else block * scale[:, None]

    def _float64_blocks(self) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
        """Reads all rows in order, in blocks so small that their copy in float64 stays in the cache."""
        step = max(1, _CACHED // self.dimension)
        for place, block in self.blocks():
            for start in range(0, len(block), step):
                rows = block[start : start + step].astype(np.float64)
                yield slice(place.start + start, place.start + start + len(rows)), rows

    def _checked_norms(self, offset: int, ids: Sequence[Any] | None) -> npt.NDArray[np.float64]:
        norms = np.empty(len(self))
        for place, rows in self._float64_blocks():
            norms[place] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        bad = ~((norms > _SHORTEST) & (norms < _LONGEST))
        if bad.any():
            first = int(np.argmax(bad))
            row = first + offset if self._index is None else int(self._index[first])
            name = row if ids is None else list(ids)[row]
            what = f"has the length {norms[first]:g}, which float32 cannot square; scale it"
            if norms[first] == 0:
                what = "is all zeros"
            elif not np.isfinite(norms[first]):
                what = "has NaN or infinite values"
            raise ValueError(
                f"the feature vector of row {name!r} {what} ({int(bad.sum())} such rows in all); "
                "remove these images or compute their features again"
            )
        return norms


class Features(NamedTuple):
    """Image features on disk: `ids[i]` names row `i` of `array`, (n, d) float16, not normalized."""

    ids: pd.Series
    array: NDArray[np.float16]

    def normalized_by_id(self) -> tuple[NDArray[np.str_], FeatureRows]:
        """Ids in ascending order, (n,), and the features in that order, L2-normalized as they are read."""
        names = self.ids.to_numpy(dtype=str)
        order = np.argsort(names)
        return names[order], FeatureRows(self.array, index=order, normalize=True, ids=names.tolist())
