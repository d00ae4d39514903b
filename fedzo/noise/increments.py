"""Integer steps: how far an entry moves a tensor, as a function of the seed's total coefficient.

This is the whole of the state's algebra (NUMERICS, "State"). For a seed whose total goes from A to A′ every
element moves by f(A′) − f(A), modulo 2³², with

    f(A) = sgn(A·z) · ⌊(|A·z| + δ) / 2^σ⌋,   σ = 40 + fraction_bits − e,   δ = ⌊D(seed, tensor) · 2^σ / 2³²⌋

where A counts units of 2⁻⁴⁰, z is an integer in units of 2^−fraction_bits and e is the tensor's exponent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedzo.noise.directions import Distribution, dither

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
    """

    def __init__(
        self, distribution: Distribution, exponents: NDArray[np.int64], lanes: Sequence[Sequence[Term]]
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
        return StepTables(self.distribution, self.seeds, indices, self._exponents[indices], tables)

    def _tables(self, indices: NDArray[np.int64]) -> NDArray[np.int32]:
        z = self.distribution.values
        tables = np.zeros((len(indices), len(self.seeds), self.lanes, len(z)), dtype=np.int64)
        if len(self._rows):
            bits = COEFFICIENT_BITS + self.distribution.fraction_bits
            sigma = (bits - self._exponents[indices])[:, None, None]
            dithers = self._dithers[self._rows][:, indices].T[:, :, None]
            steps = rounded_steps(self._after[None, :, None], z, dithers, sigma)
            steps -= rounded_steps(self._before[None, :, None], z, dithers, sigma)
            np.add.at(tables, (slice(None), self._rows, self._lanes), steps)  # type: ignore[arg-type]
        return tables.astype(np.int32)
