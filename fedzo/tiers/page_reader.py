"""Reads of whole pages, past the system's page cache where that cannot hold the file.

A file that is larger than the memory left is never found in the cache when the next pass comes to it: copying it
through there costs a core as much as the disk costs time, and drives out what others use. Direct reads ask for
offsets, sizes and memory in whole pages, so an extent is read with what else lies on its first and last page.
"""

import os
import weakref
from errno import EINVAL, EOPNOTSUPP
from pathlib import Path

import torch

from fedzo.base.checkpoint import raw_bytes
from fedzo.tiers.page import PAGE_BYTES, read_at

PAGE_ELEMENTS = PAGE_BYTES // 4
_REFUSALS = (EINVAL, EOPNOTSUPP)
"""What a file system says that has no direct reads, when a file is opened or when it is read."""


def empty_pages(elements: int) -> torch.Tensor:
    """int32[elements] that begin at a page of memory."""
    found = torch.empty(elements + PAGE_ELEMENTS, dtype=torch.int32)
    return found[-found.data_ptr() % PAGE_BYTES // 4 :][:elements]


class PageReader:
    """Of the integers behind the first page of a state file.

    Args:
        path: of the file.
        descriptor: of the file, for reads through the cache.
        cached: never read past the cache.
    """

    def __init__(self, path: Path, descriptor: int, *, cached: bool) -> None:
        self._cached = self._descriptor = descriptor
        if not cached and hasattr(os, "O_DIRECT"):
            try:
                self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                return
            weakref.finalize(self, os.close, self._descriptor)

    def read(self, start: int, size: int, buffer: torch.Tensor) -> None:
        """Put integers into a buffer, the first at `start` modulo `PAGE_ELEMENTS`.

        Args:
            start: the first integer.
            size: how many.
            buffer: int32, begins at a page of memory (`empty_pages`) and has room for two pages more than `size`.

        Raises:
            EOFError: the file ends before.
        """
        before = start % PAGE_ELEMENTS
        pages = -(-(before + size) // PAGE_ELEMENTS)
        view = raw_bytes(buffer[: pages * PAGE_ELEMENTS])
        offset, needed = PAGE_BYTES + 4 * (start - before), 4 * (before + size)
        try:
            read_at(self._descriptor, offset, view, needed)
        except OSError as error:
            if error.errno not in _REFUSALS or self._descriptor == self._cached:
                raise
            self._descriptor = self._cached
            read_at(self._descriptor, offset, view, needed)
