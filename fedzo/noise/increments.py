"""Integer steps: how far an entry moves a tensor, as a function of the seed's total coefficient.

This is the whole of the state's algebra (docs/numerics.md, "State"). For a seed whose total goes from A to A′ every
element moves by f(A′) − f(A), modulo 2³², with

    f(A) = sgn(A·z) · ⌊(|A·z| + δ) / 2^σ⌋,   σ = 40 + fraction_bits − e,   δ = ⌊D(seed, tensor) · 2^σ / 2³²⌋

where A counts units of 2⁻⁴⁰, z is an integer in units of 2^−fraction_bits and e is the tensor's exponent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedzo.noise.directions import Distribution, dither

if TYPE_CHECKING:
    import torch

COEFFICIENT_BITS = 40
"""Coefficients are int64 in units of 2⁻⁴⁰."""

COEFFICIENT_LIMIT = {Distribution.RADEMACHER: 2**62, Distribution.GAUSSIAN: 2**48}
"""A seed's total stays below this, so that no intermediate leaves 64 bits."""


class Term(NamedTuple):
    """One seed's total going from `before` to `after` (units of 2⁻⁴⁰): what a commit or an overlay adds."""

    seed: int
    before: int
    after: int


def rounded_steps(
    totals: NDArray[np.int64],
    z: NDArray[np.int64] | int,
    dithers: NDArray[np.uint32],
    sigma: NDArray[np.int64] | int,
) -> NDArray[np.int64]:
    """f(A) for broadcast arrays of totals, integer z, dithers and σ; int64, not yet reduced modulo 2³²."""
    product = totals * np.asarray(z, dtype=np.int64)
    shift = np.asarray(sigma, dtype=np.uint64)
    wide = dithers.astype(np.uint64)
    offset = np.where(
        shift >= 32,
        wide << np.maximum(shift, 32) - np.uint64(32),
        wide >> np.uint64(32) - np.minimum(shift, 32),
    )
    magnitude = (np.abs(product).astype(np.uint64) + offset) >> shift
    return np.sign(product) * magnitude.astype(np.int64)


class Touches(Protocol):
    """Which tensors the directions touch."""

    def of(self, seeds: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Does each seed's direction touch each tensor of the manifest: [seeds, tensors]."""


class Mask(NamedTuple):
    """Which elements of some segments are touched, as bits: 1 where they are."""

    words: torch.Tensor
    """int32. Element i of a tensor is bit i mod 32, the least significant first, of its word i div 32."""
    starts: list[int]
    """Where word 0 of each segment's tensor lies, or would lie, in `words`."""


@dataclass(frozen=True, slots=True)
class StepTables:
    """What to add to some tensors, for several lanes at once.

    `tables[row, s, l, symbol]` is the step (int32, modulo 2³²) that seed s makes in lane l, in the tensor
    `tensors[row]`, where its direction has that symbol. A seed's noise is made once and serves every lane.
    """

    distribution: Distribution
    seeds: NDArray[np.uint64]
    tensors: NDArray[np.int64]
    exponents: NDArray[np.int64]
    tables: NDArray[np.int32]
    alike: NDArray[np.bool_]
    """Seeds whose steps are the same in every lane, as those of waiting entries are: they may be added once for all."""
    mask: Mask | None = None
    """Where to add it, for the segments that a backend is given with these tables; everywhere where not given."""

    @property
    def moves(self) -> NDArray[np.bool_]:
        """Does a seed move a tensor in any lane, so that its noise has to be made: [tensors, seeds]."""
        found: NDArray[np.bool_] = np.asarray(self.tables.any(axis=(2, 3)))
        return found

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return int(self.tables.shape[2])


class Segment(NamedTuple):
    """A run of elements of one tensor: where its integers lie and where its weights go."""

    row: int
    """Of the step tables."""
    start: int
    """First element, flat in the tensor; noise is addressed by it."""
    size: int
    source: int
    """Where the integers begin in the state given."""
    target: int
    """Where the weights begin in a lane's output."""


class Increments:
    """The increments of every tensor of a manifest for some lanes, each lane a sequence of terms.

    Args:
        distribution: of the journal.
        exponents: e of each tensor, int64[tensors].
        lanes: the terms of each lane; a seed may occur in several terms and lanes.
        touches: which tensors a direction touches; all where not given.
    """

    def __init__(
        self,
        distribution: Distribution,
        exponents: NDArray[np.int64],
        lanes: Sequence[Sequence[Term]],
        touches: Touches | None = None,
    ) -> None:
        self.distribution = distribution
        self.lanes = len(lanes)
        self._exponents = exponents
        flat = [(lane, term) for lane, terms in enumerate(lanes) for term in terms]
        unique = {seed: row for row, seed in enumerate(dict.fromkeys(term.seed for _, term in flat))}
        self.seeds = np.fromiter(unique, dtype=np.uint64, count=len(unique))
        self._rows = np.array([unique[term.seed] for _, term in flat], dtype=np.int64)
        self._lanes = np.array([lane for lane, _ in flat], dtype=np.int64)
        self._before = np.array([term.before for _, term in flat], dtype=np.int64)
        self._after = np.array([term.after for _, term in flat], dtype=np.int64)

        self._alike = self._find_alike()
        self._touched = None if touches is None else touches.of(self.seeds)
        self._dithers = dither(self.seeds, np.arange(len(exponents)))
        self._all: NDArray[np.int32] | None = None
        if distribution is Distribution.RADEMACHER:
            self._all = self._tables(np.arange(len(exponents)))

    def of(self, tensors: Sequence[int], lanes: Sequence[int] | None = None) -> StepTables:
        """The step tables of some tensors, named by their index in the manifest; of some lanes only, where given."""
        indices = np.asarray(tensors, dtype=np.int64)
        tables = self._tables(indices) if self._all is None else self._all[indices]
        if lanes is not None and len(lanes) != self.lanes:
            tables = np.ascontiguousarray(tables[:, :, list(lanes)])
        return StepTables(self.distribution, self.seeds, indices, self._exponents[indices], tables, self._alike)

    def touched(self) -> list[int]:
        """The tensors that any of the terms touches, in order."""
        if self._touched is None:
            return list(range(len(self._exponents)))
        return np.flatnonzero(self._touched.any(axis=0)).tolist()

    def alike(self, tensors: Sequence[int]) -> list[int]:
        """For each lane the first one whose weights in these tensors are the same."""
        if self._touched is None:
            return list(range(self.lanes))
        touching = self._touched[self._rows][:, list(tensors)].any(axis=1)
        terms: list[list[tuple[int, int, int]]] = [[] for _ in range(self.lanes)]
        columns = (self._lanes, self._rows, self._before, self._after)
        for lane, *term in zip(*(column[touching].tolist() for column in columns), strict=True):
            terms[lane].append(tuple(term))
        return [terms.index(found) for found in terms]

    def _find_alike(self) -> NDArray[np.bool_]:
        """Which seeds have the same terms in every lane."""
        if self.lanes == 1:
            return np.ones(len(self.seeds), dtype=np.bool_)
        found: list[list[list[tuple[int, int]]]] = [[[] for _ in range(self.lanes)] for _ in self.seeds]
        columns = (self._rows, self._lanes, self._before, self._after)
        for row, lane, *term in zip(*(column.tolist() for column in columns), strict=True):
            found[row][lane].append((term[0], term[1]))
        return np.array([all(terms == lanes[0] for terms in lanes) for lanes in found], dtype=np.bool_)

    def _tables(self, indices: NDArray[np.int64]) -> NDArray[np.int32]:
        symbols = len(self.distribution.values)
        tables = np.zeros((len(indices), len(self.seeds), self.lanes, symbols), dtype=np.int64)
        terms = np.arange(len(self._rows))
        if self._touched is None:
            steps = self._steps(indices[:, None], terms[None, :])
            np.add.at(tables, (slice(None), self._rows, self._lanes), steps)  # type: ignore[arg-type]
        else:
            place, term = np.nonzero(self._touched[self._rows][:, indices].T)
            np.add.at(tables, (place, self._rows[term], self._lanes[term]), self._steps(indices[place], term))
        return tables.astype(np.int32)

    def _steps(self, tensors: NDArray[np.int64], terms: NDArray[np.int64]) -> NDArray[np.int64]:
        """What terms add to tensors, index arrays that are broadcast: one more axis, of the symbols."""
        z, bits = self.distribution.values, COEFFICIENT_BITS + self.distribution.fraction_bits
        sigma = (bits - self._exponents[tensors])[..., None]
        dithers = self._dithers[self._rows[terms], tensors][..., None]
        steps = rounded_steps(self._after[terms][..., None], z, dithers, sigma)
        steps -= rounded_steps(self._before[terms][..., None], z, dithers, sigma)
        return steps
