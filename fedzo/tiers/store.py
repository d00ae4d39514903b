"""What a tier of the state plane offers: the integers, piece by piece.

A piece is a run of integers that are in memory together. A tier in memory has one piece for everything that is asked;
one on disk has as many as its buffers need. Whoever goes through pieces sees every element once, in manifest order.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from fedzo.base.manifest import Manifest
from fedzo.noise import Increments, Mask, Segment, StepTables
from fedzo.tiers.page import Page

WORD_BITS = 32
"""Elements of a word of a mask."""


class Piece(NamedTuple):
    """Some integers, and which tensors' they are."""

    integers: torch.Tensor
    """int32, flat; whoever asked to rewrite it changes it in place."""
    tensors: list[int]
    """Indices in the manifest."""
    segments: list[Segment]
    """Where their parts lie in `integers`; a segment's row is its place in `tensors`."""
    mask: Mask | None = None
    """Which elements of the segments are touched; all where not given."""

    def steps(self, increments: Increments, lanes: Sequence[int] | None = None) -> StepTables:
        """What to add to them in (some) lanes."""
        return replace(increments.of(self.tensors, lanes), mask=self.mask)

    def only(self, chosen: Container[int]) -> "Piece":
        """The segments of some tensors."""
        rows = [row for row, tensor in enumerate(self.tensors) if tensor in chosen]
        kept = [(number, segment) for number, segment in enumerate(self.segments) if segment.row in rows]
        segments = [segment._replace(row=rows.index(segment.row)) for _, segment in kept]
        mask = self.mask and Mask(self.mask.words, [self.mask.starts[number] for number, _ in kept])
        return Piece(self.integers, [self.tensors[row] for row in rows], segments, mask)


class Store(Protocol):
    """A tier."""

    device: torch.device
    """Where pieces lie."""
    path: Path | None
    """The file that the integers live in, if they do."""
    page: Page | None
    """What that file is, where it is clean."""
    patience: int
    """How many seeds may stay an overlay of these integers before a pass over them is worth its cost; 0 is none."""

    @property
    def masked(self) -> bool:
        """It has a mask, which pieces bring with them."""

    def write(self, start: int, integers: torch.Tensor) -> None:
        """Put int32 integers where element `start` of the state begins."""

    def cover(self, words: Iterable[torch.Tensor]) -> None:
        """Have this mask from now on.

        Args:
            words: int32 parts, ⌈size/32⌉ words a tensor, in manifest order (`fedzo.noise.Mask`).
        """

    def read(self, tensors: Sequence[int], targets: Sequence[int] | None = None) -> Iterator[Piece]:
        """Some tensors, to look at: a piece is the caller's until the next is asked for.

        Args:
            tensors: indices in the manifest.
            targets: where each begins in what is made of them.
        """

    def hold(self, tensors: Sequence[int], targets: Sequence[int]) -> list[Piece]:
        """As `read`, all together, until the next are held; the caller's to change where `patience` is not 0."""

    def pick(self, tensor: int, starts: Sequence[int], size: int) -> Piece:
        """Runs of `size` elements of one tensor, to look at; their targets lie end to end."""

    def rewrite(self, tensors: Sequence[int], tensors_at_once: int) -> Iterator[Piece]:
        """Some tensors, to change: each piece is written back when the next is asked for."""

    def expect(self, blocks: Sequence[tuple[int, ...]]) -> None:
        """Lists of tensors that will be read next, in this order: a hint to read ahead."""

    def reserve(self, elements: int) -> None:
        """Make room to read this many elements ahead."""

    def load(self, path: Path, page: Page) -> None:
        """Take over the integers of a state file that was checked.

        Raises:
            OSError: it cannot be read.
        """

    def keep(self, path: Path, page: Page) -> None:
        """Make the integers durable at `path`, as what `page` says.

        Raises:
            StateFileError: the disk refused; the file is left dirty and will not load.
        """


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of elements that lie together in the state."""

    start: int
    size: int
    tensors: list[int]
    segments: list[Segment]
    """Sources count from `start`."""


class Layout:
    """Where each tensor lies in a state."""

    def __init__(self, manifest: Manifest) -> None:
        self._sizes = [spec.size for spec in manifest]
        self._starts = manifest.starts
        words = list(accumulate((-(-size // WORD_BITS) for size in self._sizes), initial=0))
        self.words = words.pop()
        """Of a mask of all tensors."""
        self._word_starts = words

    def piece(
        self, state: torch.Tensor, mask: torch.Tensor | None, tensors: Sequence[int], targets: Sequence[int] | None
    ) -> Piece:
        """Whole tensors of a state, and of its mask, in memory."""
        segments = [
            Segment(row, 0, self._sizes[t], self._starts[t], targets[row] if targets else 0)
            for row, t in enumerate(tensors)
        ]
        return Piece(state, list(tensors), segments, self.mask_of(mask, tensors))

    def mask_of(self, words: torch.Tensor | None, tensors: Sequence[int]) -> Mask | None:
        """The mask of segments of these tensors, from the words of all; None where there are none."""
        return None if words is None else Mask(words, [self._word_starts[tensor] for tensor in tensors])

    def words_of(self, extent: Extent) -> range:
        """Which words of a mask an extent needs."""
        first, last = extent.segments[0], extent.segments[-1]
        low = self._word_starts[extent.tensors[0]] + first.start // WORD_BITS
        return range(low, self._word_starts[extent.tensors[-1]] + -(-(last.start + last.size) // WORD_BITS))

    def word_start(self, tensor: int) -> int:
        """First word of a tensor in a mask."""
        return self._word_starts[tensor]

    def picked(self, tensor: int, starts: Sequence[int], size: int, *, together: bool) -> list[Segment]:
        """Runs of a tensor: in the whole state, or brought together in order."""
        first = self._starts[tensor]
        return [
            Segment(0, start, size, number * size if together else first + start, number * size)
            for number, start in enumerate(starts)
        ]

    def size(self, tensors: Sequence[int]) -> int:
        """Elements of some tensors together."""
        return sum(self._sizes[tensor] for tensor in tensors)

    def begin(self, tensor: int) -> int:
        """First element of a tensor."""
        return self._starts[tensor]

    def extents(
        self, tensors: Sequence[int], targets: Sequence[int] | None, most: int, tensors_at_once: int
    ) -> list[Extent]:
        """Cover tensors by extents of at most so many elements and tensors; empty tensors are left out."""
        found: list[Extent] = []
        last: Extent | None = None
        for row, tensor in enumerate(tensors):
            done, size = 0, self._sizes[tensor]
            while done < size:
                begin = self._starts[tensor] + done
                follows = last is not None and last.start + last.size == begin
                if last is None or not follows or last.size >= most or len(last.tensors) >= tensors_at_once:
                    last = Extent(begin, 0, [], [])
                    found.append(last)
                part = min(size - done, most - last.size)
                target = (targets[row] if targets else 0) + done
                last.segments.append(Segment(len(last.tensors), done, part, last.size, target))
                last.tensors.append(tensor)
                last = found[-1] = Extent(last.start, last.size + part, last.tensors, last.segments)
                done += part
        return found
