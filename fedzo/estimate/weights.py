"""Where the weights of a forward pass come from, on the device where it runs.

Lanes that share noise form a group, +ε and −ε of one direction. A block is read once for all groups of a pass, and made
for one group after the other, so that memory holds the weights of one group, however many there are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from fedzo.base.manifest import Manifest
from fedzo.noise import CopyBackend, Increments, Term, backend_at
from fedzo.state.replica import Replica
from fedzo.tiers.choice import CPU
from fedzo.tiers.device import carrier
from fedzo.tiers.store import Piece

Group = Sequence[Sequence[Term]]
"""The overlays of some lanes."""


class Out(NamedTuple):
    """Where weights of a block go, on the device; each tensor has its place in a row."""

    exact: torch.Tensor
    """float32[lanes, …]."""
    cast: torch.Tensor | None = None
    """[lanes, …] in the compute type, for tensors of rank 2 and more; where not given they go to `exact` too."""

    def shares(self, pieces: Iterable[Piece], manifest: Manifest) -> Iterator[tuple[Piece, torch.Tensor]]:
        """What of pieces goes where."""
        for piece in pieces:
            if self.cast is None:
                yield piece, self.exact
                continue
            matrices = {tensor for tensor in piece.tensors if manifest.tensors[tensor].is_matrix}
            for out, chosen in ((self.cast, matrices), (self.exact, set(piece.tensors) - matrices)):
                part = piece.only(chosen)
                if part.segments:
                    yield part, out


Make = Callable[[int, Sequence[int], Out], None]
"""Writes the weights of a block: (group, its lanes, where)."""


class Weights(Protocol):
    """What a pass over a model reads. Lists of tensors are indices in the manifest."""

    manifest: Manifest
    device: torch.device
    """Where they are made, and the model computes."""
    by_rows: bool
    """Rows of a table are brought in alone. That needs their numbers, for which the host would wait for a device."""
    casts: bool
    """Weights are cast to the compute type as they are made."""

    def begin(self, groups: Sequence[Group]) -> None:
        """A pass begins, with the overlays of its lanes."""

    def reserve(self, elements: int) -> None:
        """Make room to read this many elements ahead."""

    def expect(self, blocks: Sequence[tuple[int, ...]]) -> None:
        """Lists of tensors that will be opened next, in this order: a hint."""

    def open(self, tensors: Sequence[int], targets: Sequence[int], groups: int) -> Make:
        """Bring some tensors in for so many groups; the caller's until the next is opened.

        Args:
            tensors: which.
            targets: where each begins in a row of what is made of them.
            groups: how many will be made.
        """

    def alike(self, tensors: Sequence[int], group: int) -> list[int]:
        """For each lane of a group the first one whose weights in these tensors are the same."""

    def rows(self, tensor: int, rows: Sequence[int], group: int, lane: int) -> torch.Tensor:
        """float32[len(rows), …] weights of some rows of a tensor of rank 2 in one lane; asked for only if `by_rows`."""


class ExactWeights:
    """See `Weights`: the replica's integers, as docs/numerics.md materialises them.

    Args:
        replica: the exact state.
        device: where forward passes run; integers that lie elsewhere are brought there.
    """

    def __init__(self, replica: Replica, device: torch.device = CPU) -> None:
        self.manifest = replica.manifest
        self.device = device
        self.by_rows = replica.store.device == device == CPU
        backend = backend_at(replica.backend, device)
        self.casts = isinstance(backend, CopyBackend) and backend.casts
        self._carrier = carrier(replica.store, device)
        self._replica = replica
        self._groups: Sequence[Group] = ()
        self._increments: list[Increments] = []
        """Of each group, over the store's integers."""
        self._waiting: Increments | None = None
        self._own: list[Increments] = []
        """Of each group, over the state."""

    def begin(self, groups: Sequence[Group]) -> None:
        """See `Weights.begin`."""
        self._groups = groups
        self._increments = [self._replica.increments(group) for group in groups]
        self._waiting, self._own = None, []

    def reserve(self, elements: int) -> None:
        """See `Weights.reserve`."""
        self._replica.store.reserve(elements)
        self._carrier.reserve(elements)

    def expect(self, blocks: Sequence[tuple[int, ...]]) -> None:
        """See `Weights.expect`."""
        self._replica.expect(blocks)

    def open(self, tensors: Sequence[int], targets: Sequence[int], groups: int) -> Make:
        """See `Weights.open`: one group is made while its integers are read, several from a copy of them."""
        replica, bring = self._replica, self._carrier.bring
        if groups == 1:
            read = replica.store.read(tensors, targets)
            return lambda group, lanes, out: self._write(bring(read), self._increments[group], lanes, out)
        if self._waiting is None:
            self._waiting, self._own = replica.waiting(), [replica.steps(group) for group in self._groups]
        pieces = self._carrier.hold(replica.held(tensors, targets, self._waiting))
        return lambda group, lanes, out: self._write(pieces, self._own[group], lanes, out)

    def _write(self, pieces: Iterable[Piece], increments: Increments, lanes: Sequence[int], out: Out) -> None:
        for piece, where in out.shares(pieces, self.manifest):
            self._replica.make([piece], increments, where, lanes)

    def alike(self, tensors: Sequence[int], group: int) -> list[int]:
        """See `Weights.alike`."""
        return self._increments[group].alike(tensors)

    def rows(self, tensor: int, rows: Sequence[int], group: int, lane: int) -> torch.Tensor:
        """See `Weights.rows`."""
        return self._replica.rows(tensor, rows, self._increments[group], lane)
