"""Scratch memory for materialised weights, recycled only when nobody can still read it.

A model may keep a view of a weight longer than the block is in place. So an array goes back into use by
reference count, not by a call: torch tensors over it hold a view, and a view holds the array. A value is never
overwritten under a reader; what a model keeps stays right, and costs memory instead.
"""

import sys

import numpy as np
import torch
from numpy.typing import NDArray

_IDLE_REFERENCES = 3
"""The pool's list, the loop variable and getrefcount's argument."""


class ScratchPool:
    """Arrays of [lanes, elements], rows aligned to cache lines so that a weight's address cannot change a result."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[int, int], list[NDArray[np.uint8]]] = {}

    def take(self, lanes: int, elements: int, dtype: torch.dtype) -> torch.Tensor:
        """A tensor [lanes, elements] of undefined contents; its memory is reused when its last view is gone."""
        row_bytes = -(-max(elements, 1) * dtype.itemsize // 64) * 64
        array = self._idle(lanes, row_bytes)
        return torch.from_numpy(array[:, : elements * dtype.itemsize]).view(dtype)

    def _idle(self, lanes: int, row_bytes: int) -> NDArray[np.uint8]:
        arrays = self._arrays.setdefault((lanes, row_bytes), [])
        for array in arrays:
            if sys.getrefcount(array) == _IDLE_REFERENCES:
                return array
        fresh: NDArray[np.uint8] = torch.empty(lanes, row_bytes, dtype=torch.uint8).numpy()
        arrays.append(fresh)
        return fresh

    @property
    def bytes(self) -> int:
        """Memory held, in use or idle."""
        return sum(array.nbytes for arrays in self._arrays.values() for array in arrays)
