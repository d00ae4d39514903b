"""The innermost loops in numba: Philox words, and what they add to a group of integers.

Indices stay inside slices of fixed length because a signed index costs numba its vector code. Numba's cache of the
kernels that call these looks at their own file alone: touch `numba_backend.py` after a change here.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from fedzo.noise.philox import MULTIPLIERS, ROUNDS, WEYL

_Function = TypeVar("_Function", bound=Callable[..., Any])

_M0, _M1 = (np.uint64(m) for m in MULTIPLIERS)
_W0, _W1 = (np.uint32(w) for w in WEYL)
_U32, _U64, _I32, _F32 = np.uint32, np.uint64, np.int32, np.float32
_SHIFT = np.uint64(32)
_ONE_EXPONENT = np.uint32(1 << 23)
_REBIAS = np.uint32(112 << 23)
"""A half's exponent field stands for 2^(field − 15), a float32's for 2^(field − 127)."""
_LEAST_NORMAL_HALF = np.float32(2.0**-14)
_BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)


def kernel(function: _Function) -> _Function:
    return numba.njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]


@numba.njit(nogil=True, cache=True, forceinline=True)  # a call a block would cost as much as the block
def _philox(c0, c1, c2, c3, k0, k1):
    for _ in range(ROUNDS):
        p0 = _M0 * _U64(c0)
        p1 = _M1 * _U64(c2)
        n0 = _U32(p1 >> _SHIFT) ^ c1 ^ k0
        n2 = _U32(p0 >> _SHIFT) ^ c3 ^ k1
        c1 = _U32(p1)
        c3 = _U32(p0)
        c0 = _U32(n0)
        c2 = _U32(n2)
        k0 = _U32(k0 + _W0)
        k1 = _U32(k1 + _W1)
    return c0, c1, c2, c3


@kernel
def fill_words(block, tensor, tag, seed, words):
    """Words of consecutive blocks, in order."""
    k0 = _U32(seed)
    k1 = _U32(seed >> _SHIFT)
    for i in range(words.shape[0] // 4):
        b = _U64(block) + _U64(i)
        x0, x1, x2, x3 = _philox(_U32(b), _U32(b >> _SHIFT), _U32(tensor), _U32(tag), k0, k1)
        words[4 * i] = x0
        words[4 * i + 1] = x1
        words[4 * i + 2] = x2
        words[4 * i + 3] = x3


@kernel
def load(values, total):
    for j in range(values.shape[0]):
        total[j] = values[j]


@kernel
def store_scaled(total, scale, out):
    for j in range(out.shape[0]):
        out[j] = _F32(total[j]) * scale


@kernel
def decode_bfloat16(copy, out):
    """float32 of a copy's bits, uint16, as float32's own bits."""
    for j in range(out.shape[0]):
        out[j] = _U32(copy[j]) << _U32(16)


@kernel
def decode_float16(copy, bits, out, shares):
    """As `decode_bfloat16`, for finite numbers; no operand is subnormal: those are slow, and may be taken for 0.

    Args:
        copy: uint16.
        bits, out: the same memory, as uint32 and as float32; each loop uses one of them, or it would not vectorise.
        shares: float32, to work with.
    """
    for j in range(shares.shape[0]):
        magnitude = (_U32(copy[j]) & _U32(0x7FFF)) << _U32(13)
        small = magnitude < _ONE_EXPONENT
        bits[j] = magnitude + _REBIAS + (_ONE_EXPONENT if small else _U32(0))
        shares[j] = _LEAST_NORMAL_HALF if small else _F32(0)
    for j in range(shares.shape[0]):
        out[j] = out[j] - shares[j]
    for j in range(shares.shape[0]):
        bits[j] |= (_U32(copy[j]) & _U32(0x8000)) << _U32(16)


@kernel
def decode_levels(copy, scale, out):
    """float32 of levels of one row."""
    for j in range(out.shape[0]):
        out[j] = _F32(copy[j]) * scale


@kernel
def store_added(decoded, total, scale, out):
    """A copy's weights and, scaled, what was added since; each operation rounds by itself."""
    for j in range(out.shape[0]):
        out[j] = decoded[j] + _F32(total[j]) * scale


@kernel
def add_bits(total, words, plus, difference):
    """Rademacher: add `plus`, and `difference` too where the bit is set; 32 elements a word."""
    for q in range(words.shape[0]):
        x = words[q]
        part = total[q * 32 : q * 32 + 32]
        for j in range(32):
            part[j] = _I32(part[j] + plus + (difference if x & _BITS[j] else _I32(0)))


@kernel
def store_bits(values, words, plus, difference, scale, out):
    """`load`, `add_bits` and `store_scaled` in one pass: the common case of one seed."""
    for q in range(words.shape[0]):
        x = words[q]
        part = values[q * 32 : q * 32 + 32]
        target = out[q * 32 : q * 32 + 32]
        for j in range(32):
            bit = _I32((x >> _U32(j)) & _U32(1))
            target[j] = _F32(_I32(part[j] + plus + (difference & _I32(-bit)))) * scale


@kernel
def store_masked_bits(values, words, mask, plus, difference, scale, out):
    """As `store_bits`, adding only where the mask has a 1."""
    for q in range(words.shape[0]):
        x, y = words[q], mask[q]
        part = values[q * 32 : q * 32 + 32]
        target = out[q * 32 : q * 32 + 32]
        for j in range(32):
            bit = _I32((x >> _U32(j)) & _U32(1))
            touched = _I32((y >> _U32(j)) & _U32(1))
            added = _I32(plus + (difference & _I32(-bit))) & _I32(-touched)
            target[j] = _F32(_I32(part[j] + added)) * scale


@kernel
def add_masked_bits(total, words, mask, plus, difference):
    """As `add_bits`, adding only where the mask has a 1."""
    for q in range(words.shape[0]):
        x, y = words[q], mask[q]
        part = total[q * 32 : q * 32 + 32]
        for j in range(32):
            bit = _I32((x >> _U32(j)) & _U32(1))
            touched = _I32((y >> _U32(j)) & _U32(1))
            part[j] = _I32(part[j] + (_I32(plus + (difference & _I32(-bit))) & _I32(-touched)))


@kernel
def add_quantiles(total, words, table):
    """Gaussian: two elements a word, the upper 12 of each 16 bits index the table."""
    for q in range(words.shape[0]):
        x = words[q]
        part = total[q * 2 : q * 2 + 2]
        part[0] = _I32(part[0] + table[(x & _U32(0xFFFF)) >> _U32(4)])
        part[1] = _I32(part[1] + table[x >> _U32(20)])


@kernel
def add_masked_quantiles(total, words, mask, table):
    """As `add_quantiles`, adding only where the mask has a 1; 16 words to one of it."""
    for q in range(words.shape[0]):
        x = words[q]
        bits = mask[q // 16] >> _U32(2 * (q % 16))
        part = total[q * 2 : q * 2 + 2]
        part[0] = _I32(part[0] + (table[(x & _U32(0xFFFF)) >> _U32(4)] & _I32(-_I32(bits & _U32(1)))))
        part[1] = _I32(part[1] + (table[x >> _U32(20)] & _I32(-_I32((bits >> _U32(1)) & _U32(1)))))
