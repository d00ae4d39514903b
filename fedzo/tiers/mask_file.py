"""A mask beside a state on disk: a file without a name, which goes with its process.

A mask follows from the base alone, so each process makes it anew and no file of it has to be trusted or kept up.
"""

import os
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from fedzo.base.checkpoint import raw_bytes
from fedzo.noise import Mask
from fedzo.tiers.page import read_at, write_at
from fedzo.tiers.store import WORD_BITS, Extent, Layout


class MaskFile:
    """The words of all tensors, in manifest order.

    Args:
        directory: whose disk they go to.
        layout: where each tensor's lie.
        words: int32 parts, in order.

    Raises:
        OSError: the disk has no room for them.
    """

    def __init__(self, directory: Path, layout: Layout, words: Iterable[torch.Tensor]) -> None:
        self._layout = layout
        self._descriptor, name = tempfile.mkstemp(dir=directory)
        weakref.finalize(self, os.close, self._descriptor)
        os.unlink(name)
        start = 0
        for part in words:
            write_at(self._descriptor, start, raw_bytes(part))
            start += part.nbytes

    def read(self, extent: Extent, buffer: torch.Tensor) -> None:
        """Put the words that an extent needs at the beginning of a buffer."""
        words = self._layout.words_of(extent)
        read_at(self._descriptor, 4 * words.start, raw_bytes(buffer[: len(words)]))

    def of(self, extent: Extent, buffer: torch.Tensor) -> Mask:
        """The mask of an extent, whose words `read` has put there."""
        words = self._layout.words_of(extent)
        starts = [self._layout.word_start(tensor) - words.start for tensor in extent.tensors]
        return Mask(buffer[: len(words)], starts)

    def pick(self, tensor: int, starts: Sequence[int], size: int) -> Mask:
        """The mask of runs of one tensor, the words of each by themselves."""
        runs = [range(start // WORD_BITS, -(-(start + size) // WORD_BITS)) for start in starts]
        words = torch.empty(sum(map(len, runs)), dtype=torch.int32)
        places, end = [], 0
        for run in runs:
            own = words[end : end + len(run)]
            read_at(self._descriptor, 4 * (self._layout.word_start(tensor) + run.start), raw_bytes(own))
            places.append(end - run.start)
            end += len(run)
        return Mask(words, places)
