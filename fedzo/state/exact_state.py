"""The exact state: fixed-point integers that are read-only between commits (docs/numerics.md, "State").

Every use of them is `materialise`: integers plus an overlay, scaled once to float, into memory of the caller. The state
is a function of the totals A(s) alone, so order, batching, threads, backend and tier do not matter, and adding the
negated entries is an exact undo.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Self

import torch

from fedzo.base.checkpoint import Base, unique_parameters
from fedzo.base.manifest import Manifest
from fedzo.base.paging import release
from fedzo.base.quantise import describe_model, quantised
from fedzo.journal.records import Entry
from fedzo.noise import Distribution, Increments, NoiseBackend, Term, get_backend
from fedzo.scopes import ALL, Kind, Scope
from fedzo.scopes.mask import mask_words
from fedzo.state.drift import Drift
from fedzo.state.integers import Integers
from fedzo.tiers.host import HostStore
from fedzo.tiers.store import Piece, Store


class ExactState:
    """The integers of every trained tensor.

    Args:
        manifest: the tensors.
        store: their integers; its own from here on. An int32[manifest.elements] tensor is kept in memory.
        distribution: of the journal's directions.
        scope: what these directions touch; a `sparse` one needs a base, as `from_base` or `fill` have it.
        backend: who adds the noise; the bits do not depend on it.
        threads: CPU threads a backend may use.
    """

    def __init__(
        self,
        manifest: Manifest,
        store: Store | torch.Tensor,
        distribution: Distribution,
        *,
        scope: Scope = ALL,
        backend: NoiseBackend | None = None,
        threads: int = 1,
    ) -> None:
        self.manifest = manifest
        self.distribution = distribution
        self.scope = scope
        self.store: Store = HostStore(manifest, store) if isinstance(store, torch.Tensor) else store
        self.threads = threads
        self.backend = backend or get_backend()
        self._integers = Integers(manifest, distribution, scope, self.store, self.backend, threads)
        self._weights: list[torch.Tensor] = []
        self.drift = Drift()

    @classmethod
    def from_base(
        cls,
        base: Base,
        distribution: Distribution,
        *,
        scope: Scope = ALL,
        backend: NoiseBackend | None = None,
        threads: int = 1,
        place: Callable[[Manifest], Store] = HostStore,
        defer: bool = False,
    ) -> Self:
        """Quantise a base, taking the float weights out of its model one by one (the model is a skeleton after).

        Args:
            base: the base.
            distribution, scope, backend, threads: as of the class.
            place: makes the store.
            defer: leave the integers as the store has them until `fill` or `load` is called.

        Raises:
            CheckpointError: a weight cannot be represented; names it. The model is as it was.
        """
        manifest = describe_model(base.model)
        made = cls(manifest, place(manifest), distribution, scope=scope, backend=backend, threads=threads)
        made.take(base)
        if not defer:
            made.fill()
        return made

    def take(self, base: Base) -> None:
        """Take the float weights out of a base's model, for `fill`."""
        self._weights, self._integers.whole = [], False
        for parameter in unique_parameters(base.model).values():
            self._weights.append(parameter.detach())
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    def fill(self) -> None:
        """Make the integers those of the base taken last."""
        self._cover()
        self._integers.fill(self._quantised())
        self._weights, self.drift = [], Drift()

    def _cover(self) -> None:
        """Give the store the mask that the weights taken make, where the scope has one."""
        if self.scope.kind is Kind.SPARSE and self._weights:
            self.store.cover(self._mask())

    def _mask(self) -> Iterator[torch.Tensor]:
        for spec, weight in zip(self.manifest, self._weights, strict=True):
            yield from mask_words(weight, spec.exponent, self.scope.sparsity)
            release(weight)

    def _quantised(self) -> Iterator[torch.Tensor]:
        for spec, weight in zip(self.manifest, self._weights, strict=True):
            yield from quantised(weight, spec.exponent)
            release(weight)

    @property
    def deferred(self) -> bool:
        """The integers are neither the base's nor a state file's yet."""
        return bool(self._weights)

    @property
    def totals(self) -> dict[int, int]:
        """A(s) of every seed; seeds whose total is 0 are absent."""
        return self._integers.totals

    def add(self, entries: Iterable[Entry]) -> None:
        """θ += Σ coefficient · z(seed), exactly, whatever the order (negated entries undo)."""
        entries = list(entries)
        self.drift.add(entries)
        self._integers.add(entries)

    @property
    def state(self) -> torch.Tensor:
        """All integers, int32[manifest.elements]; where they are in memory, these themselves."""
        self._integers.rewrite()
        if isinstance(self.store, HostStore):
            return self.store.integers
        return torch.cat([piece.integers.clone() for piece in self.store.read(range(len(self.manifest)))])

    def overlay(self, steps: Mapping[int, int], perturbation: Sequence[tuple[int, int]] = ()) -> list[Term]:
        """Terms of a lane: local steps telescope from the totals, perturbations stand by themselves.

        Args:
            steps: coefficient of each seed that was stepped on top of them.
            perturbation: (seed, coefficient) pairs; zero coefficients add nothing.
        """
        terms = [Term(s, self.totals.get(s, 0), self.totals.get(s, 0) + c) for s, c in steps.items()]
        return terms + [Term(seed, 0, coefficient) for seed, coefficient in perturbation if coefficient]

    def increments(self, lanes: Sequence[Sequence[Term]]) -> Increments:
        """What each lane's terms add to each tensor of the store."""
        return self.steps([[*self._integers.waiting(), *terms] for terms in lanes])

    def steps(self, lanes: Sequence[Sequence[Term]]) -> Increments:
        """What each lane's terms add to each tensor of the state as it is now."""
        return self._integers.increments(lanes)

    def at_anchor(self) -> Increments:
        """One lane: what leads from the store's integers to the state at the anchor of compute copies."""
        anchor = {term.seed: term.before for term in self.drift.terms(self.totals)}
        known = {term.seed: term.before for term in self._integers.waiting()}
        terms = [
            Term(seed, known.get(seed, self.totals.get(seed, 0)), anchor.get(seed, self.totals.get(seed, 0)))
            for seed in known | anchor
        ]
        return self.steps([terms])

    def waiting(self) -> Increments:
        """One lane: what the store's integers lack of the state."""
        return self.steps([self._integers.waiting()])

    def held(self, tensors: Sequence[int], targets: Sequence[int], waiting: Increments) -> list[Piece]:
        """The integers of some tensors as they are now, until the next are held.

        Args:
            tensors: indices in the manifest.
            targets: where each begins in what is made of them.
            waiting: as `waiting` gives it.
        """
        pieces = self.store.hold(tensors, targets)
        for piece in pieces if len(waiting.seeds) else ():
            self.backend.commit(piece.integers, piece.segments, piece.steps(waiting), self.threads)
        return pieces

    def materialise(
        self,
        tensors: Sequence[int],
        targets: Sequence[int],
        increments: Increments,
        out: torch.Tensor,
        lanes: Sequence[int] | None = None,
    ) -> None:
        """float32 weights of some tensors for every (chosen) lane.

        Args:
            tensors: indices in the manifest.
            targets: where each begins in a row of `out`.
            increments: the lanes' overlays.
            out: float32[lanes, …] where the store's pieces lie.
            lanes: which lanes of the increments; all where not given.
        """
        self.make(self.store.read(tensors, targets), increments, out, lanes)

    def make(
        self, pieces: Iterable[Piece], increments: Increments, out: torch.Tensor, lanes: Sequence[int] | None = None
    ) -> None:
        """As `materialise`, of integers at hand, wherever they are, in float32 or what the backend casts to."""
        for piece in pieces:
            steps = piece.steps(increments, lanes)
            self.backend.materialise(piece.integers, piece.segments, steps, out, self.threads)

    def rows(self, tensor: int, rows: Sequence[int], increments: Increments, lane: int) -> torch.Tensor:
        """float32[len(rows), …] weights of some rows of a tensor of rank 2 in one lane."""
        width = self.manifest.tensors[tensor].shape[1]
        return self._pick(tensor, [row * width for row in rows], width, increments, [lane]).view(len(rows), width)

    def sample(self, tensor: int, size: int, increments: Increments) -> torch.Tensor:
        """float32[lanes, size]: the first weights of a tensor in every lane."""
        return self._pick(tensor, [0], size, increments, list(range(increments.lanes)))

    def _pick(
        self, tensor: int, starts: Sequence[int], size: int, increments: Increments, lanes: list[int]
    ) -> torch.Tensor:
        piece = self.store.pick(tensor, starts, size)
        out = torch.empty(len(lanes), len(starts) * size, device=self.store.device)
        steps = piece.steps(increments, lanes)
        self.backend.materialise(piece.integers, piece.segments, steps, out, self.threads)
        return out

    def expect(self, blocks: Sequence[tuple[int, ...]]) -> None:
        """Lists of tensors that will be materialised next, in this order: a hint."""
        self.store.expect(blocks)

    def weights(self, tensor: int) -> torch.Tensor:
        """float32 weights of one tensor as committed, on the CPU; the base's own where nothing was made of it yet."""
        spec = self.manifest.tensors[tensor]
        if self.deferred:
            return self._weights[tensor].to(torch.float32, copy=True)
        out = torch.empty(1, spec.size, device=self.store.device)
        self.materialise([tensor], [0], self.increments([[]]), out)
        return out.reshape(spec.shape).cpu()

    def maxima(self) -> tuple[int, ...]:
        """max|Θ| of every tensor."""
        return self._surveyed()[1]

    def digest(self) -> bytes:
        """The state digest: BLAKE3 over the manifest's bytes and each tensor's own BLAKE3, 32 bytes."""
        return self._surveyed()[0]

    def _surveyed(self) -> tuple[bytes, tuple[int, ...]]:
        """Digest and maxima; one pass finds both."""
        return self._integers.survey()
