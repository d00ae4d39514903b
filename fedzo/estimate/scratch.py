"""Scratch memory for materialised weights, recycled only when nobody can still read it.

A model may keep a view of a weight longer than the block is in place. So an array goes back into use by
reference count, not by a call: torch tensors over it hold a view, and a view holds the array. A value is never
overwritten under a reader; what a model keeps stays right, and costs memory instead. On a device other than the CPU
torch's own allocator does just that.
"""

import sys

import numpy as np
import torch
from numpy.typing import NDArray

_IDLE_REFERENCES = 2
"""The pool's list and getrefcount's argument."""
_LINE_BYTES = 64
_DEVICE_LINE_BYTES = 512
"""What torch aligns memory of a GPU to; libraries choose kernels by alignment, and all lanes must have the same."""


class ScratchPool:
    """Memory for [lanes, elements], rows aligned to cache lines so that a weight's address cannot change a result."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[NDArray[np.uint8]] = []

    def take(self, lanes: int, elements: int, dtype: torch.dtype) -> torch.Tensor:
        """A tensor [lanes, elements] of undefined contents; its memory is reused when its last view is gone."""
        line = _LINE_BYTES if self._device.type == "cpu" else _DEVICE_LINE_BYTES
        row_bytes = -(-max(elements, 1) * dtype.itemsize // line) * line
        if self._device.type != "cpu":
            return torch.empty(lanes, row_bytes // dtype.itemsize, dtype=dtype, device=self._device)[:, :elements]
        array = self._idle(lanes * row_bytes)[: lanes * row_bytes].reshape(lanes, row_bytes)
        return torch.from_numpy(array[:, : elements * dtype.itemsize]).view(dtype)

    def _idle(self, size: int) -> NDArray[np.uint8]:
        """The smallest idle buffer that is large enough; else a new one, and the idle ones are let go."""
        idle = [k for k in range(len(self._buffers)) if sys.getrefcount(self._buffers[k]) == _IDLE_REFERENCES]
        enough = [k for k in idle if self._buffers[k].nbytes >= size]
        if enough:
            return self._buffers[min(enough, key=lambda k: self._buffers[k].nbytes)]
        self._buffers = [buffer for k, buffer in enumerate(self._buffers) if k not in idle]
        self._buffers.append(torch.empty(size, dtype=torch.uint8).numpy())
        return self._buffers[-1]

    @property
    def bytes(self) -> int:
        """Memory of the host held, in use or idle."""
        return sum(buffer.nbytes for buffer in self._buffers)
