"""Scope `sparse`: the elements of small magnitude in the base, as bits (docs/numerics.md, "Scopes").

A tensor's threshold is an exact order statistic of its integers, found by counting their upper and then their lower
halves, so that it takes two passes over the weights and no memory that grows with them.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from fedzo.base.quantise import quantised
from fedzo.scopes.scope import MILLION

_HALF = 15
"""Bits of the lower half of |Θ⁰|, which is at most 2²⁹."""
_LOW = (1 << _HALF) - 1


def threshold(weight: torch.Tensor, exponent: int, sparsity: int) -> int:
    """The largest |Θ⁰| that is touched: the K-th least, K = n − n·sparsity div 10⁶.

    Args:
        weight: a tensor of the base, not empty.
        exponent: e.
        sparsity: in millionths, below 10⁶.
    """
    rank = weight.numel() - weight.numel() * sparsity // MILLION
    upper = np.zeros((1 << _HALF) + 1, dtype=np.int64)
    for magnitudes in _magnitudes(weight, exponent):
        upper += np.bincount(magnitudes >> _HALF, minlength=len(upper))
    high = int(np.searchsorted(np.cumsum(upper), rank))
    rank -= int(upper[:high].sum())
    lower = np.zeros(1 << _HALF, dtype=np.int64)
    for magnitudes in _magnitudes(weight, exponent):
        lower += np.bincount(magnitudes[magnitudes >> _HALF == high] & _LOW, minlength=len(lower))
    return (high << _HALF) + int(np.searchsorted(np.cumsum(lower), rank))


def mask_words(weight: torch.Tensor, exponent: int, sparsity: int) -> Iterator[torch.Tensor]:
    """The mask of a tensor, ⌈n/32⌉ words in int32 parts: element i at bit i mod 32 of word i div 32, 1 if touched."""
    if weight.numel() == 0:
        return
    most = threshold(weight, exponent, sparsity)
    for magnitudes in _magnitudes(weight, exponent):
        packed = np.packbits(magnitudes <= most, bitorder="little")
        words = np.zeros(-(-len(packed) // 4) * 4, dtype=np.uint8)
        words[: len(packed)] = packed
        yield torch.from_numpy(words.view("<i4"))


def _magnitudes(weight: torch.Tensor, exponent: int) -> Iterator[NDArray[np.int32]]:
    for part in quantised(weight, exponent):
        yield part.abs_().numpy()
