"""How pieces of a store get to where they are used: a ring of buffers on a compute device, or not at all.

A stream of its own copies while another computes, and events order the two. The host asks for copies and kernels and
waits for neither, so it is ahead of the device: what the next block needs is copied while this one is computed with,
and nothing has to be guessed. On a device without streams, the CPU, a copy is done when it was asked for, and the order
is the same.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import torch

from fedzo.noise import Mask, Segment
from fedzo.tiers.page_reader import PAGE_ELEMENTS, empty_pages
from fedzo.tiers.store import WORD_BITS, Piece, Store

_LEAST_ELEMENTS = 1 << 16
_BUFFERS = 2
"""One is computed with while the other is filled."""


class Carrier:
    """Pieces as they are: they lie where they are used."""

    def reserve(self, elements: int) -> None:
        """Have room for this many integers at once."""

    def bring(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The same integers on the device: a piece is the caller's until the next is asked for."""
        yield from pieces

    def hold(self, pieces: Iterable[Piece]) -> list[Piece]:
        """As `bring`, all together: the caller's until others are held or brought."""
        return list(pieces)


def carrier(store: Store, device: torch.device) -> Carrier:
    """What brings a store's pieces to a device."""
    return Carrier() if store.device == device else DeviceRing(device)


class _Buffer(NamedTuple):
    """Of a ring."""

    integers: torch.Tensor
    filled: torch.cuda.Event | None
    free: torch.cuda.Event | None
    """What was asked of the device with it is done."""


class DeviceRing(Carrier):
    """Two buffers of what is reserved, which is to be a block; used by one thread.

    Args:
        device: where the buffers lie.
        reserved: int32 of a buffer, before `reserve` asks for more.
    """

    def __init__(self, device: torch.device, reserved: int = _LEAST_ELEMENTS) -> None:
        self.device = device
        self._reserved = reserved
        self._buffers: list[_Buffer] = []
        self._next = 0
        self._held: _Buffer | None = None
        self._stream: torch.cuda.Stream | None = None

    def reserve(self, elements: int) -> None:
        """See `Carrier.reserve`; made when it is used first."""
        self._grow(elements)

    def _grow(self, elements: int) -> None:
        if elements > self._reserved:
            self._reserved, self._buffers, self._held = elements, [], None

    def bring(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """See `Carrier.bring`; pieces are cut and put together as buffers hold them.

        Memory that is page-locked must not change before the device has copied it; for other memory the host waits
        here, since whoever reads it from a disk takes it back at once.
        """
        chunk: _Chunk | None = None
        for piece in pieces:
            for number, segment in enumerate(piece.segments):
                done = 0
                while done < segment.size:
                    if chunk is None:
                        chunk = _Chunk(self._begin(), self._stream)
                    done += chunk.take(piece, number, done)
                    if done < segment.size:
                        yield from self._used(chunk)
                        chunk = None
        if chunk is not None:
            yield from self._used(chunk)

    def hold(self, pieces: Iterable[Piece]) -> list[Piece]:
        """See `Carrier.hold`: one piece, so that a kernel is asked for once; buffers grow to hold it.

        Pieces are gone through twice: a store's `hold`, whose pieces stay, and not its `read`.
        """
        pieces = [piece for piece in pieces if piece.segments]
        if not pieces:
            return []
        self._grow(sum(_room(segment.size, piece.mask) for piece in pieces for segment in piece.segments))
        chunk = _Chunk(self._begin(), self._stream)
        for piece in pieces:
            for number in range(len(piece.segments)):
                chunk.take(piece, number, 0)
        self._await(chunk)
        self._held = chunk.buffer
        return [chunk.piece()]

    def _begin(self) -> _Buffer:
        """The next buffer, from when it is free on."""
        if not self._buffers:
            self._make()
        if self._held is not None:
            self._free(self._held)
            self._held = None
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % len(self._buffers)
        if self._stream is not None and buffer.free is not None:
            self._stream.wait_event(buffer.free)
        return buffer

    def _used(self, chunk: "_Chunk") -> Iterator[Piece]:
        """A chunk, once it is there."""
        self._await(chunk)
        try:
            yield chunk.piece()
        finally:
            self._free(chunk.buffer)

    def _await(self, chunk: "_Chunk") -> None:
        """What is asked of the device from now on finds a chunk filled."""
        filled = chunk.buffer.filled
        if self._stream is not None and filled is not None:
            filled.record(self._stream)
            torch.cuda.current_stream(self.device).wait_event(filled)

    def _free(self, buffer: _Buffer) -> None:
        """What was asked of the device until now is the last that needs a buffer's contents."""
        if buffer.free is not None:
            buffer.free.record(torch.cuda.current_stream(self.device))

    def _make(self) -> None:
        streams = self.device.type == "cuda"
        if streams and self._stream is None:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        for _ in range(_BUFFERS):
            integers = torch.empty(self._reserved, dtype=torch.int32, device=self.device)
            events = [torch.cuda.Event() if streams else None for _ in range(2)]  # type: ignore[no-untyped-call]
            self._buffers.append(_Buffer(integers, *events))
            self._free(self._buffers[-1])  # who had this memory before may still be using it
            if self._stream is not None:
                integers.record_stream(self._stream)  # and who gets it next waits for copies into it


def _room(size: int, mask: Mask | None) -> int:
    """What a segment of this size takes of a buffer at most."""
    return size if mask is None else size + size // WORD_BITS + 4


class _Chunk:
    """What a buffer is filled with: integers, and behind those of each segment the words of their mask."""

    def __init__(self, buffer: _Buffer, stream: torch.cuda.Stream | None) -> None:
        self.buffer = buffer
        self._stream = stream
        self._end = 0
        self._tensors: list[int] = []
        self._segments: list[Segment] = []
        self._words: list[int] = []
        self._masked = False

    def take(self, piece: Piece, number: int, done: int) -> int:
        """Copy as much of a segment as there is room for, from its element `done` on; how much that is."""
        segment, mask = piece.segments[number], piece.mask
        room = self.buffer.integers.numel() - self._end
        if mask is not None:
            room = max(0, room - 2) * WORD_BITS // (WORD_BITS + 1)
        size = min(room, segment.size - done)
        if size == 0:
            return 0
        start, source = segment.start + done, segment.source + done
        tensor = piece.tensors[segment.row]
        if self._tensors[-1:] != [tensor]:
            self._tensors.append(tensor)
        self._segments.append(Segment(len(self._tensors) - 1, start, size, self._end, segment.target + done))
        self._copy(piece.integers[source : source + size])
        if mask is not None:
            first, stop = start // WORD_BITS, -(-(start + size) // WORD_BITS)
            self._words.append(self._end - first)
            self._copy(mask.words[mask.starts[number] + first : mask.starts[number] + stop])
            self._masked = True
        return size

    def piece(self) -> Piece:
        """What was taken."""
        integers = self.buffer.integers[: self._end]
        mask = Mask(integers, self._words) if self._masked else None
        return Piece(integers, self._tensors, self._segments, mask)

    def _copy(self, integers: torch.Tensor) -> None:
        target = self.buffer.integers[self._end : self._end + integers.numel()]
        self._end += integers.numel()
        with torch.cuda.stream(self._stream):  # None is no stream: a copy at once
            target.copy_(integers, non_blocking=integers.is_pinned())


def page_locked(elements: int) -> torch.Tensor:
    """int32[elements] of undefined contents that a GPU copies from by itself; like any other where that is refused."""
    pages = empty_pages(-(-elements // PAGE_ELEMENTS) * PAGE_ELEMENTS)  # of its own: what is locked twice is refused
    memory = pages[:elements]
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    portable = 1  # cudaHostRegisterPortable
    if elements and int(runtime.cudaHostRegister(pages.data_ptr(), pages.nbytes, portable)) == 0:
        weakref.finalize(memory, runtime.cudaHostUnregister, pages.data_ptr())
    elif elements:
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")  # the refusal is told to whoever asks for a kernel next
    return memory
