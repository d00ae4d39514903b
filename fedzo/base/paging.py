"""Giving memory of a mapped file back while it is still mapped.

Checkpoints are mapped into memory, so loading one costs no memory until its weights are read; then what was read stays
resident for as long as the file is mapped, a model's worth at the end. Whoever has read a tensor says so.
"""

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

import torch

_MADV_PAGEOUT = 21
"""linux/mman.h: reclaim the pages. What is in a file is read again when it is touched; nothing is lost anywhere."""


def release(tensor: torch.Tensor) -> None:
    """Say that a tensor will not be read for a while; its values stay what they are. A hint, taken on Linux only."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > first and sys.platform == "linux":
        _madvise()(ctypes.c_void_p(first), ctypes.c_size_t(stop - first), _MADV_PAGEOUT)


@cache
def _madvise() -> Any:
    return ctypes.CDLL(None).madvise
