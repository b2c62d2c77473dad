"""Near-duplicates: the same image after small changes of encoding, size, brightness or crop.

Images are compared by the cosine of their thumbnails. All pairs would take hours on a large pool, so
candidate pairs come from locality-sensitive hashing (random hyperplanes; Charikar, 2002). Own code because
imagehash's hashes are coarser and not indexed; this finds all of 1,000 near-duplicates planted among 100,000
images (`experiments/benchmarks`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from presel.data.listing import sampling_order

Input = TypeVar("Input", bound=np.generic)
Result = TypeVar("Result", bound=np.generic)

# What becomes of near-duplicate records: all stay, one of each group stays, or none does.
NearDuplicates = Literal["keep", "keep_one", "drop"]

# Side in pixels of the thumbnails that are compared.
THUMBNAIL = 16

# A signature is 32 keys of 16 bits. Thumbnails with a cosine of 0.92 share a key in 98 of 100 cases,
# unrelated ones in 5 of 10,000.
KEYS = 32
_KEY_BITS = 16
# Maximum Hamming distance between the signatures of a candidate pair; a cosine of 0.92 gives 66 ± 8.
MAX_BITS = 90

# Minimum cosine of near-duplicates' thumbnails, centered per channel. Of 8,000 photographs of 32 × 32 pixels,
# one pair in a million reaches it; 99 of 100 images still reach it after JPEG at quality 50.
_MIN_COSINE = 0.92
# Maximum shift of a channel's mean and maximum ratio of contrasts: a change of brightness by a sixth stays
# below.
_MAX_SHIFT = 40.0
_MAX_CONTRAST = 1.5
# Thumbnails whose pixels have a lower standard deviation show too little to be compared.
_MIN_CONTRAST = 2.0

# Thumbnails processed at once, to bound memory.
_ROWS = 1024
# Maximum number of images of the same key that each is compared with, to bound time.
_MAX_BUCKET = 100


def thumbnail(image: Image.Image) -> Image.Image:
    """The 16 × 16 picture by which an RGB image is compared."""
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=2.0)


def near_duplicates_to_drop(images: pd.DataFrame, how: NearDuplicates, by_task: bool) -> pd.Series:
    """Finds the records to leave out, since they show nearly the same as another record.

    Two records do if they have the same number of images, and these are in the same groups one by one. With
    `keep_one`, the first in the order of samples stays (`sampling_order`): that which is in the smallest
    sample stays in every larger one, unless a new record joins its group with an earlier one's.

    Args:
        images: A row for each image of a record, in the record's order: id, task, group (see
            `groups_of_thumbnails`).
        how: Which of them to leave out.
        by_task: Whether only records of the same task are compared, since a picture gets another instruction
            in each.

    Returns:
        By the id of each record to leave out, that of one that it resembles.
    """
    if how == "keep":
        return pd.Series(dtype=object)
    of_record = images.groupby("id", sort=True)
    records = pd.DataFrame(
        {
            "task": of_record["task"].first() if by_task else "",
            "shown": of_record["group"].agg(tuple),
        }
    ).reset_index()
    records = records.sort_values("id", key=lambda ids: ids.map(sampling_order))
    alike = records.groupby(["task", "shown"])["id"]
    records["first"], repeated = alike.transform("first"), alike.cumcount() > 0
    if how == "drop":
        # The first one resembles all others, of which the last stands for them.
        records["first"] = records["first"].where(repeated, alike.transform("last"))
        repeated = alike.transform("size") > 1
    return records[repeated].set_index("id")["first"]


def groups_of_thumbnails(thumbnails: Sequence[bytes]) -> NDArray[np.int64]:
    """Groups near-duplicates by their thumbnails, RGB pixels row by row; their order does not matter.

    Returns:
        Number of each one's group, (n,).
    """
    # Equal thumbnails, possibly thousands, need no comparison.
    different = sorted(set(thumbnails))
    pixels = np.frombuffer(b"".join(different), np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL, 3)
    numbers = dict(zip(different, group_near_duplicates(pixels).tolist(), strict=True))
    return np.array([numbers[one] for one in thumbnails], dtype=np.int64)


def group_near_duplicates(thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Groups near-duplicates among RGB thumbnails, (n, 16, 16, 3).

    A group is a connected component: its images are joined by a chain of near-duplicates. Chains are short
    in practice: in 36,000 digit scenes, a third of which are near-duplicates, the largest group has 16.

    Returns:
        Row of the first image of each image's group, (n,): its own row if it is the first.
    """
    first = np.arange(len(thumbnails))  # (n,)
    pixels = thumbnails.reshape(len(thumbnails), THUMBNAIL**2, 3)  # (n, 256, 3)
    colors = _in_blocks(lambda block: block.mean(axis=1, dtype=np.float32), pixels)  # (n, 3)
    variances = _in_blocks(lambda block: np.square(_centered(block)).mean(axis=(1, 2)), pixels)  # (n,)
    contrasts = np.sqrt(variances)
    shown = first[contrasts >= _MIN_CONTRAST]  # (m,)
    signatures = _signatures(pixels)[shown]  # (m, 32)
    for key in range(KEYS):
        pairs = shown[candidates(signatures, key)]  # (p, 2)
        pairs = pairs[first[pairs[:, 0]] != first[pairs[:, 1]]]
        shifts = np.abs(colors[pairs[:, 0]] - colors[pairs[:, 1]]).max(axis=1)  # (p,)
        ratios = np.abs(np.log(contrasts[pairs[:, 0]] / contrasts[pairs[:, 1]]))
        pairs = pairs[(shifts <= _MAX_SHIFT) & (ratios <= np.log(_MAX_CONTRAST))]
        first = _joined(first, pairs[_cosines(pixels, pairs) >= _MIN_COSINE])
    return first


def _joined(first: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The groups, (n,), once those of each pair of rows, (p, 2), are one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(pairs):
        return first
    rows = np.arange(len(first))
    edges = np.concatenate([np.stack([rows, first], axis=1), pairs])  # (n + p, 2)
    graph = coo_array((np.ones(len(edges), bool), edges.T), shape=(len(first), len(first)))
    _, labels = connected_components(graph, directed=False)  # (n,)
    _, firsts = np.unique(labels, return_index=True)
    joined: NDArray[np.int64] = firsts[labels]
    return joined


def candidates(signatures: NDArray[np.uint16], key: int) -> NDArray[np.int64]:
    """Pairs of rows, (p, 2), that share a key and whose signatures, (n, 32), differ by at most `MAX_BITS`.

    Two signatures that differ in fewer bits than there are keys share at least one. Where more than a hundred
    images share a key, they are sorted by another key, and each is compared with the next hundred.
    """
    words = np.ascontiguousarray(signatures).view(np.uint64)  # (n, 8)
    order = np.lexsort((signatures[:, key - 1], signatures[:, key]))  # (n,)
    found = [np.empty((0, 2), np.int64)]
    for places in _equal_pairs(signatures[order, key]):
        pairs = order[places]  # (p, 2)
        bits = np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(axis=1, dtype=np.int64)
        found.append(pairs[bits <= MAX_BITS])
    return np.concatenate(found)


def _equal_pairs(keys: NDArray[np.uint16]) -> Iterator[NDArray[np.int64]]:
    """Pairs of positions with equal keys in a sorted array of keys, distance by distance, (p, 2) each."""
    starts = np.arange(len(keys))
    for distance in range(1, _MAX_BUCKET + 1):
        # The keys are sorted: without an equal key at this distance there is none at a larger one.
        starts = starts[starts < len(keys) - distance]
        starts = starts[keys[starts] == keys[starts + distance]]
        if not len(starts):
            return
        yield np.stack([starts, starts + distance], axis=1)


def _signatures(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The sides of 512 random hyperplanes that the thumbnails lie on, as 32 keys of 16 bits, (n, 32)."""
    size = THUMBNAIL**2 * 3
    planes = np.random.default_rng(0).standard_normal((size, KEYS * _KEY_BITS), np.float32)  # (768, 512)
    sides = _in_blocks(lambda block: _centered(block).reshape(-1, size) @ planes > 0, pixels)  # (n, 512)
    return np.packbits(sides, axis=1).view(np.uint16)


def _cosines(pixels: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    """Cosine between the thumbnails of each pair, (p,)."""

    def cosines(block: NDArray[np.int64]) -> NDArray[np.float32]:
        first, second = _centered(pixels[block[:, 0]]), _centered(pixels[block[:, 1]])
        pairs = (first, second), (first, first), (second, second)
        both, one, other = (np.einsum("npc,npc->n", *two) for two in pairs)
        cosine: NDArray[np.float32] = both / np.sqrt(one * other)
        return cosine

    return _in_blocks(cosines, pairs)


def _centered(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels minus the mean of their channel, (n, 256, 3)."""
    centered: NDArray[np.float32] = pixels - pixels.mean(axis=1, keepdims=True, dtype=np.float32)
    return centered


def _in_blocks(work: Callable[[NDArray[Input]], NDArray[Result]], rows: NDArray[Input]) -> NDArray[Result]:
    """Applies `work` to blocks of rows and joins the results."""
    # At least one block, so that an empty input gives a result of the right shape and type.
    starts = range(0, max(1, len(rows)), _ROWS)
    return np.concatenate([work(rows[start : start + _ROWS]) for start in starts])
