"""A replica's integers: a store, the totals that the state has, and what the store lacks of them.

Bringing a store to the totals is a pass over the whole state, so it may be behind by some seeds. These wait, and
whoever reads the store adds them as an overlay. Integers that a change left half way are never taken for a state.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from fedzo.base.manifest import Manifest
from fedzo.errors import ReplicaError
from fedzo.journal.records import Entry, add_entries
from fedzo.noise import Distribution, Increments, NoiseBackend, Term
from fedzo.scopes import Kind, Scope
from fedzo.scopes.layers import touches_of
from fedzo.state.survey import Survey
from fedzo.tiers.page import Page
from fedzo.tiers.store import Store

_SEEDS_AT_ONCE = 256
_SEEDS_A_PASS = 4096
_TABLE_ENTRIES = 1 << 23
"""Bounds on step tables that are in memory together; the result does not depend on them."""
_UNCOMMITTED = 4
"""Times a store's patience: so many seeds of local steps, which are undone soon, may wait."""


class Integers:
    """What a replica's state is made of.

    Args:
        manifest: the tensors.
        distribution: of the journal's directions.
        scope: what they touch.
        store: where the integers lie; its own from here on.
        backend: who adds the noise.
        threads: CPU threads a backend may use.
    """

    def __init__(
        self,
        manifest: Manifest,
        distribution: Distribution,
        scope: Scope,
        store: Store,
        backend: NoiseBackend,
        threads: int,
    ) -> None:
        self.manifest = manifest
        self.distribution = distribution
        self._masks = scope.kind is Kind.SPARSE
        self._touches = touches_of(scope, manifest)
        self.store = store
        self.backend = backend
        self.threads = threads
        self.totals: dict[int, int] = {}
        """A(s) of every seed; seeds whose total is 0 are absent."""
        self.whole = True
        """They are a state: not still to be made, and not left half way by a change that failed."""
        self._stored: dict[int, int] = {}
        """The totals that the store has, of the seeds where it is behind."""
        self._survey: tuple[bytes, tuple[int, ...]] | None = None

    def fill(self, parts: Iterable[torch.Tensor]) -> None:
        """Make them those of a base.

        Args:
            parts: int32, flat, of the whole state in order.
        """
        self.whole, start = False, 0
        for part in parts:
            self.store.write(start, part)
            start += part.numel()
        self._are_whole()
        self.totals = {}

    def load(self, path: Path, page: Page) -> None:
        """Take over those of a state file that was checked (not the totals)."""
        self.store.load(path, page)
        self._are_whole()

    def add(self, entries: Iterable[Entry]) -> None:
        """Add to the totals; the store follows when it is far behind."""
        before: dict[int, int] = {}
        for seed, _ in (entries := list(entries)):
            before.setdefault(seed, self.totals.get(seed, 0))
        add_entries(self.totals, entries)
        if any(total != self.totals.get(seed, 0) for seed, total in before.items()):
            for seed, total in before.items():
                self._stored.setdefault(seed, total)
            self._stored = {seed: total for seed, total in self._stored.items() if total != self.totals.get(seed, 0)}
            self._forget_survey()
            if len(self._stored) > _UNCOMMITTED * self.store.patience:
                self.rewrite()

    @property
    def behind(self) -> int:
        """How many seeds wait."""
        return len(self._stored)

    def waiting(self) -> list[Term]:
        """What the store lacks.

        Raises:
            ReplicaError: it does not hold a state.
        """
        self.require_whole()
        return [Term(seed, total, self.totals.get(seed, 0)) for seed, total in self._stored.items()]

    def increments(self, lanes: Sequence[Sequence[Term]]) -> Increments:
        """What each lane's terms add to each tensor."""
        return Increments(self.distribution, self.manifest.exponents, lanes, self._touches)

    def rewrite(self, survey: Survey | None = None) -> None:
        """Bring the store to the totals, in as few passes as step tables allow; the last is surveyed."""
        terms = self.waiting()
        self.whole = False
        symbols = len(self.distribution.values)
        for low in range(0, len(terms), _SEEDS_A_PASS):
            passed = terms[low : low + _SEEDS_A_PASS]
            steps = [self.increments([passed[k : k + _SEEDS_AT_ONCE]]) for k in range(0, len(passed), _SEEDS_AT_ONCE)]
            tensors_at_once = max(1, _TABLE_ENTRIES // (min(len(passed), _SEEDS_AT_ONCE) * symbols))
            touched = sorted(set().union(*(increments.touched() for increments in steps)))
            last = survey if low + _SEEDS_A_PASS >= len(terms) else None
            for piece in self.store.rewrite(touched, tensors_at_once):
                for increments in steps:
                    self.backend.commit(piece.integers, piece.segments, piece.steps(increments), self.threads)
                if last is not None:
                    last.add(piece)
            if last is not None:
                self._look_at(last, sorted(set(range(len(self.manifest))).difference(touched)))
        self._stored, self.whole = {}, True

    def survey(self) -> tuple[bytes, tuple[int, ...]]:
        """State digest and max|Θ| of every tensor, in one pass, or as found last."""
        self.require_whole()
        if self._survey is None:
            survey = Survey(self.manifest, self.threads)
            if self._stored:
                self.rewrite(survey)
            else:
                self._look_at(survey, range(len(self.manifest)))
            self._survey = survey.result()
        return self._survey

    def _look_at(self, survey: Survey, tensors: Sequence[int]) -> None:
        for piece in self.store.read(tensors):
            survey.add(piece)

    def _forget_survey(self) -> None:
        """The integers have changed."""
        self._survey = None

    def require_whole(self) -> None:
        """Raises ReplicaError where the integers are those of no position."""
        if not self.whole or self.store.masked is not self._masks:
            raise ReplicaError(
                "this replica's integers are no state: they were not made yet, or a change of them failed half way; "
                "resume from the run's files, and they are made from base and journal"
            )

    def _are_whole(self) -> None:
        self._stored, self.whole = {}, True
        self._forget_survey()
