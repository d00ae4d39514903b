"""Philox4x32-10, the counter-based generator behind every random number of fedzo.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11, section 3.3. The
multipliers and Weyl constants are those of Random123's `philox.h`; its known-answer vectors are in
`tests/golden/philox.txt`. This is the plain numpy version, the reference for all others.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

Words = NDArray[np.uint32]

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], key: tuple[ArrayLike, ArrayLike]) -> Words:
    """The four output words of each block.

    Args:
        counter: four arrays (or integers) below 2³², broadcast against each other and the key.
        key: two arrays (or integers) below 2³².

    Returns:
        uint32 array of the broadcast shape with one more axis of length 4 at the end.
    """
    c0, c1, c2, c3, k0, k1 = np.broadcast_arrays(*(np.asarray(part, dtype=np.uint64) for part in (*counter, *key)))
    m0, m1 = (np.uint64(m) for m in MULTIPLIERS)
    w0, w1 = (np.uint64(w) for w in WEYL)
    for _ in range(ROUNDS):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + w0) & _LOW, (k1 + w1) & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def split64(value: ArrayLike) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(value mod 2³², value div 2³²) of unsigned 64-bit integers: how seeds and block numbers enter a block."""
    wide = np.asarray(value, dtype=np.uint64)
    return wide & _LOW, wide >> _SHIFT


def join64(low: ArrayLike, high: ArrayLike) -> NDArray[np.uint64]:
    """low + 2³²·high, as uint64."""
    return np.asarray(low, dtype=np.uint64) | (np.asarray(high, dtype=np.uint64) << _SHIFT)
