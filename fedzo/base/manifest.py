"""The manifest: which tensors are trained, in which order, and the fixed-point exponent of each.

Written once into a journal's genesis and never derived again (docs/numerics.md, "State"). Its order gives every tensor
the index that noise is made with.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import frexp, prod

import numpy as np
from blake3 import blake3

from fedzo.errors import CheckpointError

MAGIC = b"fedzo-manifest-1\n"
EXPONENT_OF_UNIT = 29
MAX_MAGNITUDE = 2.0**20


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One trainable tensor."""

    name: str
    """The loaded model's name of the parameter; of a tied weight the least of its names."""
    shape: tuple[int, ...]
    exponent: int
    """A stored integer Θ stands for Θ · 2^−exponent."""
    max_abs: int
    """Largest |Θ⁰|, in integer units."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Of rank 2 or more: what a 16-bit compute type is for; the others stay float32 (docs/numerics.md)."""
        return len(self.shape) >= 2


@dataclass(frozen=True, slots=True)
class Manifest:
    """The trainable tensors, sorted by name (UTF-8 bytes)."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [t.name.encode() for t in self.tensors]
        if names != sorted(set(names)):
            raise CheckpointError(
                "a manifest lists each tensor once, sorted by the bytes of its name; this one does not"
            )

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def exponents(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """e of every tensor: int64[tensors]."""
        return np.array([t.exponent for t in self.tensors], dtype=np.int64)

    @property
    def starts(self) -> list[int]:
        """Where each tensor begins in the state, in elements."""
        return list(accumulate((t.size for t in self.tensors), initial=0))[:-1]

    @property
    def elements(self) -> int:
        """Number of trained elements."""
        return sum(t.size for t in self.tensors)

    def to_bytes(self) -> bytes:
        """The bytes that digests cover (docs/numerics.md, "Digests")."""
        parts = [MAGIC, struct.pack("<I", len(self.tensors))]
        for tensor in self.tensors:
            parts += [frame(tensor.name, tensor.shape), struct.pack("<iI", tensor.exponent, tensor.max_abs)]
        return b"".join(parts)

    def digest(self) -> bytes:
        """BLAKE3 of `to_bytes`, 32 bytes."""
        return blake3(self.to_bytes()).digest()


def frame(name: str, shape: tuple[int, ...]) -> bytes:
    """u32 name length, name, u8 rank, u64 dims: how digests frame a tensor."""
    encoded = name.encode()
    return struct.pack(f"<I{len(encoded)}sB{len(shape)}Q", len(encoded), encoded, len(shape), *shape)


def exponent_for(max_magnitude: float) -> int:
    """e = 29 − k, k the least integer with 2ᵏ ≥ max(1, max|w|), found by frexp and not by a rounded logarithm."""
    mantissa, k = frexp(max(1.0, max_magnitude))
    return EXPONENT_OF_UNIT - (k - 1 if mantissa == 0.5 else k)
