"""Reading ahead: what will be needed next is read into a fixed ring of buffers by a thread of its own.

The ring bounds memory, whatever is asked for. Guesses cost nothing but their reads: where something else is asked for,
they are dropped.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from fedzo.tiers.page_reader import empty_pages
from fedzo.tiers.store import Extent

_Name = tuple[int, ...]


class _Coming(NamedTuple):
    """A buffer that is being filled, or was."""

    buffer: torch.Tensor
    done: Future[None]


class ReadAhead:
    """Used by one thread.

    Args:
        read: puts an extent into a buffer; runs in the reading thread.
        elements: int32 of a buffer, which begins at a page of memory.
        buffers: how many.
    """

    def __init__(self, read: Callable[[Extent, torch.Tensor], None], elements: int, buffers: int) -> None:
        self._read = read
        self._elements = elements
        self._buffers = 0
        self._idle: list[torch.Tensor] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fedzo-read")
        weakref.finalize(self, self._thread.shutdown, wait=False)
        self._names: deque[tuple[_Name, int]] = deque()
        """What is expected, in order: its name and how many extents it has."""
        self._waiting: deque[Extent] = deque()
        self._coming: deque[_Coming] = deque()
        self.reserve(buffers)

    def reserve(self, buffers: int) -> None:
        """Have at least this many buffers."""
        for _ in range(self._buffers, buffers):
            self._idle.append(empty_pages(self._elements))
        self._buffers = max(self._buffers, buffers)

    def expect(self, names: Sequence[_Name], extents: Callable[[_Name], Sequence[Extent]]) -> None:
        """What will be taken next, in this order; what is expected already is dropped where it does not begin so.

        Args:
            names: of what will be taken.
            extents: what to read for a name.
        """
        known = [name for name, _ in self._names]
        if known != list(names[: len(known)]):
            self.drop()
            known = []
        for name in names[len(known) :]:
            self._expect(name, extents(name))
        self._start()

    def take(self, name: _Name, extents: Sequence[Extent]) -> Iterator[tuple[Extent, torch.Tensor]]:
        """Each extent with the buffer that `read` has put it into, which goes back when the next is asked for.

        Args:
            name: as it was expected by.
            extents: of what is asked for; it is read now where it was not expected next.
        """
        if not self._names or self._names[0] != (name, len(extents)):
            self.drop()
            self._expect(name, extents)
        self._names.popleft()
        left = len(extents)
        try:
            for extent in extents:
                self._start()
                coming = self._coming.popleft()
                try:
                    coming.done.result()
                    yield extent, coming.buffer
                finally:
                    self._idle.append(coming.buffer)
                left -= 1
        finally:
            if left:
                self.drop()
        self._start()

    def drop(self) -> None:
        """Forget what is expected; buffers come back when their reads have ended."""
        self._names.clear()
        self._waiting.clear()
        while self._coming:
            coming = self._coming.popleft()
            coming.done.exception()
            self._idle.append(coming.buffer)

    def _expect(self, name: _Name, extents: Sequence[Extent]) -> None:
        self._names.append((name, len(extents)))
        self._waiting.extend(extents)

    def _start(self) -> None:
        while self._waiting and self._idle:
            extent, buffer = self._waiting.popleft(), self._idle.pop()
            self._coming.append(_Coming(buffer, self._thread.submit(self._read, extent, buffer)))
