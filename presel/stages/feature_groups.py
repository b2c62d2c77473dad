"""Features read group by group: tasks, cells of a large task, or clusters that lie together."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from presel.selection import FeatureRows
from presel.selection.arrays import IntVector
from presel.selection.feature_rows import Features
from presel.storage.files import atomic, check_room, drop_cached_pages, map_array, map_new_array

# Up to this size features are read where they are: the system keeps them in memory, in any order.
IN_PLACE_BYTES = 2 * 2**30
# Rows copied at a time, 25 MB in float16 at 768 dimensions.
_BLOCK = 16_384


def read_in_place(features: Features) -> bool:
    """Whether groups of these features are read without a copy of the file."""
    return features.array.nbytes <= IN_PLACE_BYTES


def check_room_for_copy(features: Features, folder: Path) -> None:
    """Raises an OSError if a folder's disk has no room for the copy that `FeatureGroups` writes."""
    if not read_in_place(features):
        check_room(folder, features.array.nbytes)


class FeatureGroups:
    """L2-normalized features of one group of images after another, whatever the size of their file.

    The images of a group are spread over the whole file. Read in place, each group of a file that does not
    fit into memory would cost a pass over most of it. So one pass writes the vectors group by group to a
    second file of the same size, and only the group that is read takes memory.
    """

    def __init__(self, features: Features, groups: Sequence[IntVector], copy: Path) -> None:
        """Checks all vectors before any group is read, and regroups them if their file is large.

        Args:
            features: The features.
            groups: Rows of each group, in the order in which to give them; no row is in two groups.
            copy: The second file, to be removed by the caller; one of an interrupted run is taken over.

        Raises:
            ValueError: If a vector is refused, see `FeatureRows`.
        """
        self._features, self._groups = features, groups
        self.in_place = read_in_place(features)
        if self.in_place:
            self._rows = [self._checked(rows) for rows in groups]
            in_no_group = np.ones(len(features.array), np.bool_)  # (n,)
            in_no_group[np.concatenate(groups)] = False
            if in_no_group.any():
                self._checked(np.flatnonzero(in_no_group))
        else:
            self._bounds = np.cumsum([0, *map(len, groups)])  # (groups + 1,)
            if not copy.exists():
                self._regroup(copy)
            self._copy = map_array(copy)  # (m, d)

    def __getitem__(self, number: int) -> FeatureRows:
        """The features of a group, read into memory if they are not read in place."""
        if self.in_place:
            return self._rows[number]
        # In the copy, the rows of a group keep the order of the first file.
        order = np.argsort(self._groups[number])  # (r,)
        stored = self._copy[self._bounds[number] : self._bounds[number + 1]]  # (r, d)
        vectors = np.empty_like(stored)
        for start in range(0, len(order), _BLOCK):
            vectors[order[start : start + _BLOCK]] = stored[start : start + _BLOCK]
            drop_cached_pages(self._copy)
        return FeatureRows(vectors, normalize=True)

    def _checked(self, rows: IntVector) -> FeatureRows:
        return FeatureRows(self._features.array, index=rows, normalize=True, ids=self._features.ids)

    def _regroup(self, copy: Path) -> None:
        """Writes the rows of each group next to each other, in one pass over the features."""
        array = self._features.array
        group_of = np.full(len(array), len(self._groups), np.int32)  # (n,); the last of them is no group
        for number, rows in enumerate(self._groups):
            group_of[rows] = number
        with atomic(copy) as temporary:
            shape = (int(self._bounds[-1]), array.shape[1])
            regrouped = map_new_array(temporary, array.dtype, shape)
            free = self._bounds.copy()  # where the next row of each group goes
            for start in range(0, len(array), _BLOCK):
                block = np.arange(start, min(start + _BLOCK, len(array)))
                self._checked(block)
                block = block[np.argsort(group_of[block], kind="stable")]
                for number, rows in _runs(group_of[block], block):
                    if number < len(self._groups):
                        regrouped[free[number] : free[number] + len(rows)] = array[rows]
                        free[number] += len(rows)
                drop_cached_pages(array)
                drop_cached_pages(regrouped)
            regrouped.flush()


def _runs(numbers: NDArray[np.int32], rows: IntVector) -> list[tuple[int, IntVector]]:
    """Splits rows where their sorted numbers, (r,), change: each number with its rows."""
    parts = np.split(rows, np.flatnonzero(np.diff(numbers)) + 1)
    return list(zip(np.unique(numbers).tolist(), parts, strict=True))
