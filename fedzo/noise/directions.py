"""Directions z(seed): the symbol of every element, and what a symbol means (docs/numerics.md, "Directions").

A direction is stored as small integers, *symbols*, an element depends on (seed, tensor, element) alone:

    rademacher  symbol 0 or 1, z = +1 or −1
    gaussian    symbol 0..4095, z = T[symbol] · 2⁻¹², T rounded normal quantiles at (j + ½)/4096

So adding an entry to a tensor is one table look-up an element, whatever the distribution: `increments.py`
computes the table of integer steps, one for each symbol, and the backends add `table[symbol]`.
"""

import json
from enum import StrEnum
from importlib.resources import files

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from fedzo.noise.philox import philox4x32, split64

TAG_DITHER = 2
_GAUSSIAN_TABLE_BLAKE3 = "30f7031c0d468e9017fa2c3439a6c0559a9463b8f50e93cc5dde0144327341f0"


class Distribution(StrEnum):
    """What the elements of a direction are drawn from; fixed for a journal."""

    RADEMACHER = "rademacher"
    GAUSSIAN = "gaussian"

    @property
    def tag(self) -> int:
        """The d of the Philox counter."""
        return 0 if self is Distribution.RADEMACHER else 1

    @property
    def elements_per_block(self) -> int:
        """Elements that one Philox block serves."""
        return 128 if self is Distribution.RADEMACHER else 8

    @property
    def values(self) -> NDArray[np.int64]:
        """z of each symbol, an integer in units of 2^−fraction_bits."""
        return np.array([1, -1]) if self is Distribution.RADEMACHER else GAUSSIAN_TABLE

    @property
    def fraction_bits(self) -> int:
        """Binary digits of z after the point."""
        return 0 if self is Distribution.RADEMACHER else 12


def _load_gaussian_table() -> NDArray[np.int64]:
    table = np.array(json.loads(files("fedzo.noise").joinpath("gaussian_table.json").read_text()), dtype=np.int64)
    found = blake3(table.astype("<i4").tobytes()).hexdigest()
    if found != _GAUSSIAN_TABLE_BLAKE3:
        raise ImportError(
            f"fedzo/noise/gaussian_table.json was altered: BLAKE3 {found}, expected {_GAUSSIAN_TABLE_BLAKE3}; "
            "reinstall fedzo"
        )
    return table


GAUSSIAN_TABLE = _load_gaussian_table()


def symbols(distribution: Distribution, seed: int, tensor: int, start: int, stop: int) -> NDArray[np.int64]:
    """Symbols of elements start..stop−1 (flat, C order) of a tensor: int64[stop − start].

    Args:
        distribution: which direction.
        seed: unsigned 64-bit.
        tensor: the tensor's index in the manifest.
        start: first element.
        stop: one past the last element.
    """
    return block_symbols(distribution, distribution.tag, seed, tensor, start, stop)


def block_symbols(
    distribution: Distribution, tag: int, key: int, tensor: int, start: int, stop: int
) -> NDArray[np.int64]:
    """As `symbols`, from the blocks of any tag and key."""
    per_block = distribution.elements_per_block
    first, last = start // per_block, -(-stop // per_block)
    low, high = split64(np.arange(first, last))
    words = philox4x32((low, high, tensor, tag), split64(key))
    if distribution is Distribution.RADEMACHER:
        found = (words[..., None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    else:
        found = ((words[..., None] >> np.array([0, 16], dtype=np.uint32)) & np.uint32(0xFFFF)) >> np.uint32(4)
    offset = start - first * per_block
    return found.reshape(-1)[offset : offset + stop - start].astype(np.int64)


def dither(seeds: NDArray[np.uint64], tensors: NDArray[np.int64]) -> NDArray[np.uint32]:
    """D(seed, tensor), the dither of the rounding: uint32 [len(seeds), len(tensors)] (tag 2)."""
    k0, k1 = split64(seeds)
    return philox4x32((0, 0, tensors[None, :], TAG_DITHER), (k0[:, None], k1[:, None]))[..., 0]
