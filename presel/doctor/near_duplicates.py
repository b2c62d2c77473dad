"""Near-duplicates: the same picture encoded, scaled, brightened or cut a little differently.

Pictures are compared by thumbnails. To compare all with all would take hours on a large pool, so only such
pairs are compared whose signatures agree somewhere: each bit of a signature says on which side of a random
plane a thumbnail lies, and alike thumbnails lie on the same side of most planes (locality-sensitive hashing
for the cosine; Charikar, 2002).
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from presel.doctor.examine import THUMBNAIL

Given = TypeVar("Given", bound=np.generic)
Result = TypeVar("Result", bound=np.generic)

# Signatures are 32 keys of 16 bits. Thumbnails with a cosine of 0.92 have a key in common in 98 of 100 cases,
# unrelated ones in 5 of 10,000.
KEYS = 32
_KEY_BITS = 16
# Bits in which the signatures of compared pictures differ at most; a cosine of 0.92 comes to 66 ± 8.
MAX_BITS = 90

# Least cosine of alike thumbnails, each channel less its mean. Of 8,000 photographs of 32 × 32 pixels, one
# pair in a million reaches it; JPEG at quality 50 keeps 99 in 100 of them above it.
_MIN_COSINE = 0.92
# What a change of brightness by a sixth leaves alike: the mean of each channel, and the contrast.
_MAX_SHIFT = 40.0
_MAX_CONTRAST = 1.5
# Standard deviation of a thumbnail's pixels below which it shows too little to be told from others.
_MIN_CONTRAST = 2.0

# Thumbnails that are worked on at once, to bound memory.
_ROWS = 1024
# Images of one key that each is compared with, to bound time where thousands look alike.
_MAX_BUCKET = 100


def near_duplicates(thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Groups pictures that look alike.

    Each is only compared with the firsts of groups, a group of one at the start, so that small steps do not
    chain different pictures together, and thousands of like pictures cost little.

    Args:
        thumbnails: RGB, (n, 16, 16, 3).

    Returns:
        Row of the first picture of each one's group, (n,): its own where it is the first.
    """
    first = np.arange(len(thumbnails))
    pixels = thumbnails.reshape(len(thumbnails), THUMBNAIL**2, 3)
    colors, contrasts = _colors(pixels), _contrasts(pixels)
    shown = first[contrasts >= _MIN_CONTRAST]
    signatures = _signatures(pixels)
    for key in range(KEYS):
        firsts = shown[first[shown] == shown]
        pairs = np.sort(firsts[candidates(signatures[firsts], key)])
        shifts = np.abs(colors[pairs[:, 0]] - colors[pairs[:, 1]]).max(axis=1)
        ratios = np.abs(np.log(contrasts[pairs[:, 0]] / contrasts[pairs[:, 1]]))
        pairs = pairs[(shifts <= _MAX_SHIFT) & (ratios <= np.log(_MAX_CONTRAST))]
        pairs = pairs[_cosines(pixels, pairs) >= _MIN_COSINE]
        # By the later picture, then by the earlier: whether that is still a first is settled by then.
        for earlier, later in pairs[np.lexsort(pairs.T)].tolist():
            if first[later] == later and first[earlier] == earlier:
                first[later] = earlier
    # The first that a picture joined may have joined another since.
    while not np.array_equal(first[first], first):
        first = first[first]
    return first


def candidates(signatures: NDArray[np.uint16], key: int) -> NDArray[np.int64]:
    """Pairs that have one key in common, and signatures that differ in no more than `MAX_BITS` bits.

    Signatures that differ in fewer bits than they have keys agree in at least one of these. Where more than a
    hundred agree, they are put in the order of another key, and each is compared with the next hundred.

    Args:
        signatures: (n, 32).
        key: Which one.

    Returns:
        Pairs of rows, each once, (p, 2).
    """
    words = np.ascontiguousarray(signatures).view(np.uint64)
    order = np.lexsort((signatures[:, key - 1], signatures[:, key]))
    found = [np.empty((0, 2), np.int64)]
    for places in _sharing(signatures[order, key]):
        pairs = order[places]
        bits = np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(axis=1, dtype=np.int64)
        found.append(pairs[bits <= MAX_BITS])
    return np.concatenate(found)


def _sharing(keys: NDArray[np.uint16]) -> Iterator[NDArray[np.int64]]:
    """Pairs of places that hold the same key, the keys being in order: those at each distance in turn."""
    starts = np.arange(len(keys))
    for distance in range(1, _MAX_BUCKET + 1):
        # Whoever has no equal at this distance has none further on.
        starts = starts[starts < len(keys) - distance]
        starts = starts[keys[starts] == keys[starts + distance]]
        if not len(starts):
            return
        yield np.stack([starts, starts + distance], axis=1)


def _colors(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean of each channel, (n, 3)."""
    return _in_blocks(lambda block: block.mean(axis=1, dtype=np.float32), pixels)


def _contrasts(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Standard deviation about these means, (n,)."""
    return _in_blocks(lambda block: np.sqrt(np.square(_centered(block)).mean(axis=(1, 2))), pixels)


def _signatures(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """On which sides of 512 planes the pictures lie, (n, 32)."""
    planes = np.random.default_rng(0).standard_normal((THUMBNAIL**2 * 3, KEYS * _KEY_BITS), np.float32)
    sides = _in_blocks(lambda block: _centered(block).reshape(-1, THUMBNAIL**2 * 3) @ planes > 0, pixels)
    return np.packbits(sides, axis=1).view(np.uint16)


def _cosines(pixels: NDArray[np.uint8], pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    """Cosine of the two of each pair, (p,)."""

    def cosines(block: NDArray[np.int64]) -> NDArray[np.float32]:
        first, second = _centered(pixels[block[:, 0]]), _centered(pixels[block[:, 1]])
        products = [
            np.einsum("npc,npc->n", *two) for two in ((first, second), (first, first), (second, second))
        ]
        cosine: NDArray[np.float32] = products[0] / np.sqrt(products[1] * products[2])
        return cosine

    return _in_blocks(cosines, pairs)


def _centered(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The pixels less the mean of their channel."""
    centered: NDArray[np.float32] = pixels - pixels.mean(axis=1, keepdims=True, dtype=np.float32)
    return centered


def _in_blocks(work: Callable[[NDArray[Given]], NDArray[Result]], rows: NDArray[Given]) -> NDArray[Result]:
    """Works on a thousand rows at a time."""
    # At least one block, so that no rows give a result of the right shape and kind.
    starts = range(0, max(1, len(rows)), _ROWS)
    return np.concatenate([work(rows[start : start + _ROWS]) for start in starts])
