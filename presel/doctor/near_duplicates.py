"""Near-duplicates: the same image after small changes of encoding, size, brightness or crop.

Images are compared by the cosine of their thumbnails. All pairs would take hours on a large pool, so
candidate pairs come from locality-sensitive hashing (random hyperplanes; Charikar, 2002). Own code because
imagehash's hashes are coarser and not indexed; this finds all of 1,000 near-duplicates planted among 100,000
images (`experiments/benchmarks`).
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from presel.doctor.examine import THUMBNAIL

Input = TypeVar("Input", bound=np.generic)
Result = TypeVar("Result", bound=np.generic)

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


def group_near_duplicates(thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Groups near-duplicates among RGB thumbnails, (n, 16, 16, 3).

    Images are compared only with the first image of each group, so that a chain of small changes does not
    join different images, and large groups cost little.

    Returns:
        Row of the first image of each image's group, (n,): its own row if it is the first.
    """
    first = np.arange(len(thumbnails))  # (n,)
    pixels = thumbnails.reshape(len(thumbnails), THUMBNAIL**2, 3)  # (n, 256, 3)
    colors = _in_blocks(lambda block: block.mean(axis=1, dtype=np.float32), pixels)  # (n, 3)
    variances = _in_blocks(lambda block: np.square(_centered(block)).mean(axis=(1, 2)), pixels)  # (n,)
    contrasts = np.sqrt(variances)
    shown = first[contrasts >= _MIN_CONTRAST]  # (m,)
    signatures = _signatures(pixels)  # (n, 32)
    for key in range(KEYS):
        firsts = shown[first[shown] == shown]  # (g,)
        pairs = np.sort(firsts[candidates(signatures[firsts], key)])  # (p, 2)
        shifts = np.abs(colors[pairs[:, 0]] - colors[pairs[:, 1]]).max(axis=1)  # (p,)
        ratios = np.abs(np.log(contrasts[pairs[:, 0]] / contrasts[pairs[:, 1]]))
        pairs = pairs[(shifts <= _MAX_SHIFT) & (ratios <= np.log(_MAX_CONTRAST))]
        pairs = pairs[_cosines(pixels, pairs) >= _MIN_COSINE]
        # Sorted by the later image, then by the earlier one, which by then is known to be a first or not.
        for earlier, later in pairs[np.lexsort(pairs.T)].tolist():
            if first[later] == later and first[earlier] == earlier:
                first[later] = earlier
    # The first image of a group may itself have joined another group later.
    while not np.array_equal(first[first], first):
        first = first[first]
    return first


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
