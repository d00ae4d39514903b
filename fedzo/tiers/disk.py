"""The state in a file: explicit reads and writes into a fixed ring of buffers, never a mapping.

The file is the state file itself (`fedzo.tiers.page`). A pass over it costs seconds where a model is large, so the
latest entries stay an overlay of it, as the newest entries of a log-structured store do, and the file is rewritten
when they are many. Between rewrites it is clean, and names the position that it is at.
"""

import fcntl
import gc
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from fedzo.base.checkpoint import raw_bytes
from fedzo.base.manifest import Manifest
from fedzo.errors import StateFileError
from fedzo.tiers import BUFFER_ELEMENTS, LEAST_BUFFERS
from fedzo.tiers.mask_file import MaskFile
from fedzo.tiers.page import PAGE_BYTES, Page, read_at, write_at, write_page
from fedzo.tiers.page_reader import PAGE_ELEMENTS, PageReader
from fedzo.tiers.read_ahead import ReadAhead
from fedzo.tiers.store import WORD_BITS, Extent, Layout, Piece

_ZEROS = 1 << 20
"""Bytes written at a time where a system cannot allocate a file otherwise."""


class DiskStore:
    """See `fedzo.tiers.Store`.

    Args:
        path: of the state file; made where it is not there.
        manifest: the tensors.
        buffer_elements: integers of a read; the memory held is at least eight times as many, and what is reserved.
        kept: somebody comes back to the file; else it is only this store's.
        cached: passes over it go through the system's page cache; else past it, where the file system can.

    Raises:
        StateFileError: the file cannot be opened, or the disk has no room for it.
    """

    device = torch.device("cpu")
    page: Page | None = None
    patience = 16

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        buffer_elements: int = BUFFER_ELEMENTS,
        kept: bool = True,
        cached: bool = True,
    ) -> None:
        self.path = path if kept else None
        self._file = path
        self._layout = Layout(manifest)
        self._tensors = len(manifest)
        self._most = buffer_elements
        self._soiled = False
        self._held = torch.empty(0, dtype=torch.int32)
        self._mask: MaskFile | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            weakref.finalize(self, os.close, self._descriptor)
            _lock(path, self._descriptor)
            size = PAGE_BYTES + 4 * manifest.elements
            if os.fstat(self._descriptor).st_size != size:
                _allocate(self._descriptor, size)
        except OSError as error:
            raise StateFileError(
                f"{path}: a state of {4 * manifest.elements:,} bytes cannot be kept there ({error.strerror}); free "
                "space, give another directory, or keep the state in memory"
            ) from error
        self._pages = PageReader(path, self._descriptor, cached=cached)
        room = 2 * PAGE_ELEMENTS + buffer_elements + buffer_elements // WORD_BITS + 2 * len(manifest)
        self._ahead = ReadAhead(self._read_into, room, LEAST_BUFFERS)

    @property
    def masked(self) -> bool:
        """See `Store.masked`."""
        return self._mask is not None

    def write(self, start: int, integers: torch.Tensor) -> None:
        """See `Store.write`."""
        self._soil()
        self._write_at(start, integers)

    def cover(self, words: Iterable[torch.Tensor]) -> None:
        """See `Store.cover`.

        Raises:
            StateFileError: the disk has no room for it.
        """
        self._ahead.drop()
        try:
            self._mask = MaskFile(self._file.parent, self._layout, words)
        except OSError as error:
            raise StateFileError(
                f"{self._file}: a mask of {4 * self._layout.words:,} bytes cannot be kept beside it "
                f"({error.strerror}); free space, give another directory, or keep the state in memory"
            ) from error

    def read(self, tensors: Sequence[int], targets: Sequence[int] | None = None) -> Iterator[Piece]:
        """See `Store.read`."""
        extents = self._layout.extents(tensors, targets, self._most, self._tensors)
        for extent, buffer in self._ahead.take(tuple(tensors), extents):
            yield self._piece(extent, buffer)

    def hold(self, tensors: Sequence[int], targets: Sequence[int]) -> list[Piece]:
        """See `Store.hold`: a copy, in memory that is kept for the next."""
        size = self._layout.size(tensors)
        if self._held.numel() < size:
            self._held = torch.empty(size, dtype=torch.int32)
        pieces, end = [], 0
        for piece in self.read(tensors, targets):
            start, end = end, end + piece.integers.numel()
            mask = None if piece.mask is None else piece.mask._replace(words=piece.mask.words.clone())
            pieces.append(piece._replace(integers=self._held[start:end].copy_(piece.integers), mask=mask))
        return pieces

    def pick(self, tensor: int, starts: Sequence[int], size: int) -> Piece:
        """See `Store.pick`: past the ring, whose order these few reads would break."""
        integers = torch.empty(len(starts) * size, dtype=torch.int32)
        segments = self._layout.picked(tensor, starts, size, together=True)
        low = 0
        for high in range(1, len(starts) + 1):
            if high == len(starts) or starts[high] != starts[high - 1] + size:
                run = integers[low * size : high * size]
                self._read_at(self._layout.begin(tensor) + starts[low], run)
                low = high
        mask = None if self._mask is None else self._mask.pick(tensor, starts, size)
        return Piece(integers, [tensor], segments, mask)

    def rewrite(self, tensors: Sequence[int], tensors_at_once: int) -> Iterator[Piece]:
        """See `Store.rewrite`."""
        self._soil()
        extents = self._layout.extents(tensors, None, self._most, tensors_at_once)
        for extent, buffer in self._ahead.take((), extents):
            yield self._piece(extent, buffer)
            self._write_at(extent.start, self._integers(extent, buffer))

    def expect(self, blocks: Sequence[tuple[int, ...]]) -> None:
        """See `Store.expect`."""
        self._ahead.expect(blocks, lambda block: self._layout.extents(block, None, self._most, self._tensors))

    def reserve(self, elements: int) -> None:
        """See `Store.reserve`."""
        self._ahead.reserve(-(-elements // self._most))

    def load(self, path: Path, page: Page) -> None:
        """See `Store.load`: they are there."""
        self._require_own(path)
        self.page, self._soiled = page, False

    def keep(self, path: Path, page: Page) -> None:
        """See `Store.keep`; the path is the file's own."""
        self._require_own(path)
        try:
            write_page(self._descriptor, page)
        except OSError as error:
            raise StateFileError(
                f"{path}: not written ({error.strerror}); the journal holds the run: resume"
            ) from error
        self.page, self._soiled = page, False

    def _require_own(self, path: Path) -> None:
        if path != self.path:
            raise StateFileError(f"{path}: this state lives in {self.path}, and is kept and loaded there alone")

    def _soil(self) -> None:
        """Say durably that the integers are being changed, and forget what was read of them."""
        self._ahead.drop()
        if not self._soiled:
            write_page(self._descriptor, None)
            self.page, self._soiled = None, True

    def _write_at(self, start: int, integers: torch.Tensor) -> None:
        try:
            write_at(self._descriptor, PAGE_BYTES + 4 * start, raw_bytes(integers))
        except OSError as error:
            raise StateFileError(
                f"{self._file}: not written ({error.strerror}); the journal holds the run: free space and resume"
            ) from error

    def _piece(self, extent: Extent, buffer: torch.Tensor) -> Piece:
        """What `_read_into` has read."""
        mask = None if self._mask is None else self._mask.of(extent, self._words(extent, buffer))
        return Piece(self._integers(extent, buffer), extent.tensors, extent.segments, mask)

    def _read_into(self, extent: Extent, buffer: torch.Tensor) -> None:
        """Whole pages of integers, and behind an extent's the words of its mask."""
        try:
            self._pages.read(extent.start, extent.size, buffer)
        except EOFError:
            raise StateFileError(f"{self._file}: ends before the last tensor; resume, and it is made anew") from None
        if self._mask is not None:
            self._mask.read(extent, self._words(extent, buffer))

    def _integers(self, extent: Extent, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[extent.start % PAGE_ELEMENTS :][: extent.size]

    def _words(self, extent: Extent, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[extent.start % PAGE_ELEMENTS + extent.size :]

    def _read_at(self, start: int, integers: torch.Tensor) -> None:
        try:
            read_at(self._descriptor, PAGE_BYTES + 4 * start, raw_bytes(integers))
        except EOFError:
            raise StateFileError(f"{self._file}: ends before the last tensor; resume, and it is made anew") from None


def _lock(path: Path, descriptor: int) -> None:
    """Keep others out of the file for as long as it is open here.

    Raises:
        StateFileError: someone has it open.
    """
    for last in (False, True):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if last:
                raise StateFileError(f"{path}: another process, or another run of this one, works with it") from None
            gc.collect()  # a store that this process has done with, and not yet let go


def _allocate(descriptor: int, size: int) -> None:
    """Give a file its size, with room for all of it; it is dirty. Raises OSError, and the file is empty then."""
    try:
        os.ftruncate(descriptor, 0)
        write_page(descriptor, None)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            for offset in range(PAGE_BYTES, size, _ZEROS):
                write_at(descriptor, offset, bytes(min(_ZEROS, size - offset)))
    except OSError:
        os.ftruncate(descriptor, 0)
        raise
