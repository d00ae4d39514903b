"""The range guard: may a record be written? Answered from scalars alone (docs/numerics.md, "Range guard").

Every |Θ| stays at or below 2³⁰, so a perturbation on top of it cannot wrap and the float conversion stays
monotone. The bound is a sum over entries, which grows faster than the state does; a record that states the
measured maxima of the state before it restarts the sum from there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedzo.base.manifest import Manifest
from fedzo.coordinator.seed_totals import SeedTotals
from fedzo.errors import RangeGuardError
from fedzo.journal.records import Entry, Record
from fedzo.noise import COEFFICIENT_BITS, Distribution
from fedzo.noise.directions import dither
from fedzo.noise.increments import COEFFICIENT_LIMIT, rounded_steps
from fedzo.scopes import ALL, Scope
from fedzo.scopes.layers import touches_of

RANGE_LIMIT = 2**30
LARGEST_BOUND = 2 * RANGE_LIMIT
"""A seed's bound is cut off here, beyond the limit by itself, so that no sum of them can wrap."""


class _Change(NamedTuple):
    """What a record would change."""

    totals: dict[int, int]
    """A(s) after it, of its seeds."""
    anchors: list[int]
    """Aₚ(s) after it, likewise."""
    growth: NDArray[np.int64]
    """Of the sum of every tensor: int64[tensors]."""


class RangeGuard:
    """The guard's sum for every tensor, as a fold over records.

    The bound of a tensor is maxima + Σ_s b(A(s), Aₚ(s)): Aₚ the totals when the maxima were measured (0 at the base),
    and b(A, Aₚ) = |r(A) − r(Aₚ)|, r the step at the largest |z|; for gaussian directions one more where Aₚ ≠ 0,
    since two roundings are involved. It is 0 where the seed's direction does not touch the tensor at all.

    Raises:
        ConfigError: the scope does not fit the manifest.
    """

    def __init__(self, manifest: Manifest, distribution: Distribution, scope: Scope = ALL) -> None:
        self._touches = touches_of(scope, manifest)
        self._names = [t.name for t in manifest]
        self._tensors = np.arange(len(manifest))
        self._gaussian = distribution is Distribution.GAUSSIAN
        self._coefficient_limit = COEFFICIENT_LIMIT[distribution]
        self._largest_z = int(distribution.values.max())
        self._sigma = COEFFICIENT_BITS + distribution.fraction_bits - manifest.exponents
        self._maxima = np.array([t.max_abs for t in manifest], dtype=np.int64)
        self._used = np.zeros(len(manifest), dtype=np.int64)
        self._seeds = SeedTotals()
        """Aₚ are its anchors."""
        self._checked: tuple[Sequence[Entry], Sequence[int] | None, _Change] | None = None
        """What was found of the record that was checked last, which is the one to be applied next."""

    @property
    def totals(self) -> dict[int, int]:
        """A(s) of every seed for which it is not 0."""
        return dict(self._seeds.nonzero())

    @property
    def anchors(self) -> dict[int, int]:
        """Aₚ(s) of every seed for which it is not 0: the totals when maxima were stated last."""
        return dict(self._seeds.nonzero_anchors())

    def begin(self, entries: Sequence[Entry]) -> None:
        """Take totals over, of different seeds. Nothing is known of their bounds: the next record must state maxima."""
        self._seeds.put(dict(entries), [0] * len(entries))

    @property
    def share_used(self) -> float:
        """Largest share of the room between maxima and limit that the sum has used, 0 to 1."""
        room = np.maximum(RANGE_LIMIT - self._maxima, 1)
        return float((self._used / room).max(initial=0.0))

    def check(self, entries: Sequence[Entry], maxima: Sequence[int] | None = None) -> None:
        """May these entries be committed, given the maxima that the record would state (if any)?

        Raises:
            RangeGuardError: no; names the tensor or the seed.
        """
        self._checked_change(entries, maxima)

    def _checked_change(self, entries: Sequence[Entry], maxima: Sequence[int] | None) -> _Change:
        """`check`, and what the record would change."""
        if self._checked is not None and self._checked[0] is entries and self._checked[1] == maxima:
            return self._checked[2]
        anchored = maxima is not None
        seeds = list(dict.fromkeys(seed for seed, _ in entries))
        before, anchors = self._seeds.of(seeds)
        totals = self._totals_after(entries, dict(zip(seeds, before.tolist(), strict=True)))
        anchors = before if anchored else anchors
        growth = self._growth(seeds, before, totals, anchors)
        base = np.asarray(maxima, dtype=np.int64) if anchored else self._maxima
        used = np.zeros_like(self._used) if anchored else self._used
        bound = base + used + growth
        over = np.flatnonzero(bound > RANGE_LIMIT)
        if len(over):
            worst = int(over[0])
            raise RangeGuardError(
                f"tensor {self._names[worst]!r}: these entries could bring its largest integer to {int(bound[worst])}, "
                f"beyond the limit {RANGE_LIMIT} (2^30); lower the learning rate, or the option attest-every"
            )
        change = _Change(totals, anchors.tolist(), growth)
        if isinstance(entries, tuple):
            self._checked = entries, maxima, change
        return change

    def check_perturbation(self, epsilon: int) -> None:
        """May a plan perturb by epsilon (units of 2⁻⁴⁰) without wrapping? Raises RangeGuardError, names the tensor."""
        steps = self._steps(np.array([epsilon]), np.array([0], dtype=np.uint64))[0]
        over = np.flatnonzero(np.abs(steps) >= RANGE_LIMIT)
        if len(over):
            raise RangeGuardError(
                f"tensor {self._names[int(over[0])]!r}: a perturbation of {epsilon / 2**COEFFICIENT_BITS:g} leaves the "
                "range of its integers; choose a smaller epsilon"
            )

    def apply(self, record: Record) -> None:
        """Fold one record in, after `check` or as read from a journal (where it raises the same error)."""
        change = self._checked_change(record.entries, record.maxima)
        self._checked = None
        if record.maxima is not None:
            self._maxima = np.asarray(record.maxima, dtype=np.int64)
            self._used[:] = 0
            self._seeds.anchor()
        self._used += change.growth
        self._seeds.put(change.totals, change.anchors)

    def _totals_after(self, entries: Sequence[Entry], totals: dict[int, int]) -> dict[int, int]:
        """Totals with the entries added; raises RangeGuardError where one leaves its limit on the way."""
        for seed, coefficient in entries:
            totals[seed] += coefficient
            if abs(totals[seed]) >= self._coefficient_limit:
                raise RangeGuardError(
                    f"seed {seed}: its total would leave ±{self._coefficient_limit} (units of 2^-40); "
                    "lower the learning rate"
                )
        return totals

    def _growth(
        self, seeds: list[int], before: NDArray[np.int64], after: dict[int, int], anchors: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """How much the sum of every tensor grows when the seeds' totals move: int64[tensors]."""
        if not seeds:
            return np.zeros_like(self._used)
        totals = np.stack([before, np.fromiter(after.values(), dtype=np.int64, count=len(after))])
        bounds = self._bounds(totals, anchors, np.array(seeds, dtype=np.uint64))
        return np.asarray((bounds[1] - bounds[0]).sum(axis=0))

    def _bounds(
        self, totals: NDArray[np.int64], anchors: NDArray[np.int64], seeds: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """b(totals, anchors) of every tensor, cut off: int64[2, seeds, tensors] of totals int64[2, seeds]."""
        steps = self._steps(np.vstack([totals, anchors]), seeds)
        bounds: NDArray[np.int64] = np.abs(steps[:-1] - steps[-1])
        if self._gaussian:
            bounds += ((anchors != 0) & (totals != anchors))[..., None]
        if self._touches is not None:
            bounds *= self._touches.of(seeds)
        return np.minimum(bounds, LARGEST_BOUND)

    def _steps(self, totals: NDArray[np.int64], seeds: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The step at the largest |z|: int64[..., seeds, tensors] of totals int64[..., seeds]."""
        dithers = dither(seeds, self._tensors)
        return rounded_steps(totals[..., None], self._largest_z, dithers, self._sigma)
