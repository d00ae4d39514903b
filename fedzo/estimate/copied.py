"""Weights from a compute copy: the copy of the state at its anchor, plus everything since, in float32.

The copy is streamed like a state, so that a pass reads one or two bytes an element instead of four. It is made anew
from the exact integers where the anchor has moved; nobody comes back to it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from fedzo.base.manifest import Manifest
from fedzo.errors import ConfigError
from fedzo.estimate.weights import ExactWeights, Group, Make, Out, Weights
from fedzo.noise import CopyBackend, Increments, Segment, backend_at
from fedzo.scopes import Kind
from fedzo.state.compute_copy import CopyFormat
from fedzo.state.drift import Drift
from fedzo.state.replica import Replica
from fedzo.tiers.choice import CPU, scratch_place
from fedzo.tiers.device import carrier
from fedzo.tiers.store import Piece, Store

_CHUNK = 1 << 16
"""Elements decoded at a time, a multiple of those in an int32: what they become stays in cache until it is added."""

EXACT_ELEMENTS = 1 << 24
"""Exact integers that are brought to a device at a time, for the copy to be made of them."""


def weights_of(replica: Replica, copy: str, state: str, directory: Path, device: torch.device = CPU) -> Weights:
    """What a pass reads.

    Args:
        replica: the exact state.
        copy: one of `fedzo.tiers.COPIES`.
        state: which tier a copy goes to, one of `fedzo.tiers.TIERS`.
        directory: where a copy on disk lies.
        device: where forward passes run.

    Raises:
        ConfigError: the replica's scope has a mask, which a copy does not follow.
    """
    if copy == "none":
        return ExactWeights(replica, device)
    if replica.scope.kind is Kind.SPARSE:
        raise ConfigError(
            f"compute-copy is {copy!r}, and scope {replica.scope.describe()} needs the exact weights; leave it 'none'"
        )
    return CopiedWeights(replica, copy, scratch_place(state, directory, device), device)


class CopiedWeights:
    """See `fedzo.estimate.weights.Weights`.

    Args:
        replica: the exact state.
        kind: one of `fedzo.tiers.COPIES`, not `none`.
        place: makes the store of the copy.
        device: where forward passes run.
    """

    def __init__(
        self, replica: Replica, kind: str, place: Callable[[Manifest], Store], device: torch.device = CPU
    ) -> None:
        self.manifest = replica.manifest
        self.device = device
        self._replica = replica
        self._format = CopyFormat(kind, replica.manifest, device)
        layout = self._format.layout()
        self._starts = layout.starts
        self._store = place(layout)
        self.by_rows = replica.store.device == self._store.device == device == CPU
        self._carrier, self._exact_carrier = carrier(self._store, device), carrier(replica.store, device)
        backend = backend_at(replica.backend, device)
        self._kernels = backend if isinstance(backend, CopyBackend) else None
        self.casts = self._kernels is not None and self._kernels.casts
        self._made: tuple[Drift, int] | None = None
        """What the copy was made of: the anchor of this drift."""
        self._largest = max((spec.size for k, spec in enumerate(self.manifest) if self._format.copied(k)), default=0)
        self._exact: list[Increments] = []
        """Of each group, over the store's integers; of those tensors that have no copy."""
        self._since: list[Increments] = []
        """Of each group, over the copy."""

    def begin(self, groups: Sequence[Group]) -> None:
        """See `Weights.begin`; the copy is made anew where its anchor has moved."""
        replica = self._replica
        drift = replica.drift
        if self._made is None or self._made[0] is not drift or self._made[1] != drift.anchor:
            self._make_copy()
        since = drift.terms(replica.totals)
        self._exact = [replica.increments(group) for group in groups]
        self._since = [replica.steps([[*since, *terms] for terms in group]) for group in groups]

    def reserve(self, elements: int) -> None:
        """See `Weights.reserve`."""
        self._store.reserve(elements // self._format.together)
        self._carrier.reserve(elements // self._format.together)
        self._exact_carrier.reserve(min(elements, EXACT_ELEMENTS))

    def expect(self, blocks: Sequence[tuple[int, ...]]) -> None:
        """See `Weights.expect`."""
        self._store.expect([self._copied(block) for block in blocks])

    def open(self, tensors: Sequence[int], targets: Sequence[int], groups: int) -> Make:
        """See `Weights.open`."""
        target_of = dict(zip(tensors, targets, strict=True))
        chosen = self._copied(tensors)
        begins = [0] * len(chosen)
        if groups == 1:
            pieces: Iterable[Piece] = self._carrier.bring(self._store.read(chosen, begins))
        else:
            pieces = self._carrier.hold(self._store.hold(chosen, begins))
        others = self._exact_carrier.hold(self._uncopied(target_of))

        def make(group: int, lanes: Sequence[int], out: Out) -> None:
            copies = out.exact if out.cast is None else out.cast
            self._add(pieces, target_of, self._since[group], copies, lanes)
            for piece, where in out.shares(others, self.manifest):
                self._replica.make([piece], self._exact[group], where, lanes)

        return make

    def alike(self, tensors: Sequence[int], group: int) -> list[int]:
        """See `Weights.alike`."""
        return self._since[group].alike(tensors)

    def rows(self, tensor: int, rows: Sequence[int], group: int, lane: int) -> torch.Tensor:
        """See `Weights.rows`."""
        if not self._format.copied(tensor):
            return self._replica.rows(tensor, rows, self._exact[group], lane)
        width, together = self.manifest.tensors[tensor].shape[1], self._format.together
        integers = width // together
        picked = self._store.pick(tensor, [row * integers for row in rows], integers)
        out = torch.empty(1, len(rows) * width)
        places = [
            Segment(0, segment.start * together, width, segment.source * together, segment.target * together)
            for segment in picked.segments
        ]
        self._make(picked._replace(segments=places), self._since[group], out, [lane])
        return out.view(len(rows), width)

    def _uncopied(self, target_of: dict[int, int]) -> Iterator[Piece]:
        """The exact integers of those tensors that have no copy; they are few."""
        for tensor, target in target_of.items():
            size = self.manifest.tensors[tensor].size
            if size and not self._format.copied(tensor):
                piece = self._replica.store.pick(tensor, [0], size)
                yield piece._replace(segments=[segment._replace(target=target) for segment in piece.segments])

    def _copied(self, tensors: Sequence[int]) -> tuple[int, ...]:
        return tuple(tensor for tensor in tensors if self._format.copied(tensor))

    def _add(
        self,
        pieces: Iterable[Piece],
        target_of: dict[int, int],
        since: Increments,
        out: torch.Tensor,
        lanes: Sequence[int],
    ) -> None:
        """Write the weights of pieces of the copy, element 0 of a tensor going to its target."""
        together = self._format.together
        for integers, tensors, segments, _ in pieces:
            places = []
            for row, start, size, source, _ in segments:
                first = start * together
                places.append(Segment(row, first, size * together, source * together, target_of[tensors[row]] + first))
            self._make(Piece(integers, tensors, places), since, out, lanes)

    def _make(self, piece: Piece, since: Increments, out: torch.Tensor, lanes: Sequence[int]) -> None:
        """As `_add`, of a piece whose segments count elements."""
        if not piece.segments:
            return
        if self._kernels is None:
            self._decode_and_add(piece, since, out, lanes)
            return
        copy, steps = piece.integers.view(self._format.type), since.of(piece.tensors, lanes)
        scales = self._format.scales(piece.tensors)
        self._kernels.materialise_copies(copy, piece.segments, steps, out, self._replica.threads, scales)

    def _decode_and_add(self, piece: Piece, since: Increments, out: torch.Tensor, lanes: Sequence[int]) -> None:
        """For a backend that knows integers alone: what it makes of zeros, and then the copy.

        Args:
            piece: of the copy; its segments count elements.
            since, out, lanes: as of `_add`.
        """
        together = self._format.together
        zeros = [place._replace(source=0) for place in piece.segments]
        self._replica.make([Piece(self._nothing, piece.tensors, zeros)], since, out, lanes)
        for row, start, size, source, target in piece.segments:
            for low in range(0, size, _CHUNK):
                high = min(low + _CHUNK, size)
                run = piece.integers[(source + low) // together : (source + high) // together]
                found = self._format.decode(piece.tensors[row], run, start + low)
                out[:, target + low : target + high] += found

    def _make_copy(self) -> None:
        replica, increments = self._replica, self._replica.at_anchor()
        self._made = None
        work = torch.empty(1, self._largest, device=self.device)
        for tensor, spec in enumerate(self.manifest):
            if self._format.copied(tensor):
                weights = work[:, : spec.size]
                replica.make(self._exact_carrier.bring(replica.store.read([tensor], [0])), increments, weights)
                self._store.write(self._starts[tensor], self._format.encode(tensor, weights.view(spec.shape)))
        self._made = replica.drift, replica.drift.anchor

    @cached_property
    def _nothing(self) -> torch.Tensor:
        """int32 zeros for the largest tensor with a copy; on the CPU they are never touched, so no memory."""
        return torch.from_numpy(np.zeros(self._largest, dtype=np.int32)).to(self.device)
