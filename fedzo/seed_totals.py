"""The total of every seed that a run has used, in 24 bytes a seed: sorted columns, and the latest seeds beside them.

Seeds of a run are as many as its reports, so a dictionary of them would be most of what a server holds. Looked up are a
record's few seeds at a time. New ones go into a small dictionary, and that into the columns when it is full.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_RECENT = 1024
"""Seeds beside the columns at the least; of many more a 64th, so that merging stays cheap for each seed."""


class SeedTotals:
    """A(s) of every seed, and Aₚ(s), what it was at the last `anchor`; both 0 for a seed never set."""

    def __init__(self) -> None:
        self._seeds = np.empty(0, dtype=np.uint64)
        self._rows = np.empty((2, 0), dtype=np.int64)
        """A and Aₚ of `_seeds`, which are sorted."""
        self._recent: dict[int, tuple[int, int]] = {}
        """The same of seeds that were set last, which counts where the columns have another."""

    def of(self, seeds: Sequence[int]) -> NDArray[np.int64]:
        """int64[2, seeds]: A and Aₚ."""
        found = np.zeros((2, len(seeds)), dtype=np.int64)
        if len(self._seeds):
            asked = np.array(seeds, dtype=np.uint64)
            where = np.minimum(np.searchsorted(self._seeds, asked), len(self._seeds) - 1)
            found = np.where(self._seeds[where] == asked, self._rows[:, where], 0)
        for k, seed in enumerate(seeds):
            if (recent := self._recent.get(seed)) is not None:
                found[:, k] = recent
        return found

    def put(self, totals: Mapping[int, int], anchors: Sequence[int]) -> None:
        """Set A of some seeds, whose Aₚ is as `of` found it."""
        self._recent.update(zip(totals, zip(totals.values(), anchors, strict=True), strict=True))
        if len(self._recent) > max(_RECENT, len(self._seeds) >> 6):
            self._merge()

    def anchor(self) -> None:
        """Aₚ = A, for all seeds."""
        self._merge()
        self._rows[1] = self._rows[0]

    def nonzero(self) -> dict[int, int]:
        """Seed → A, where that is not 0."""
        return self._nonzero(0)

    def anchored(self) -> dict[int, int]:
        """Seed → Aₚ, where that is not 0."""
        return self._nonzero(1)

    def _nonzero(self, row: int) -> dict[int, int]:
        self._merge()
        return {seed: a for seed, a in zip(self._seeds.tolist(), self._rows[row].tolist(), strict=True) if a}

    def _merge(self) -> None:
        """Bring the columns up to date, and forget seeds of which both are 0."""
        if not self._recent:
            return
        seeds = np.array(sorted(self._recent), dtype=np.uint64)
        rows = np.array([self._recent[seed] for seed in seeds.tolist()], dtype=np.int64).T
        self._recent = {}
        where = np.searchsorted(self._seeds, seeds)
        known = where < len(self._seeds)
        known[known] = self._seeds[where[known]] == seeds[known]
        self._rows[:, where[known]] = rows[:, known]
        self._seeds = np.insert(self._seeds, where[~known], seeds[~known])
        self._rows = np.insert(self._rows, where[~known], rows[:, ~known], axis=1)
        kept = self._rows.any(axis=0)
        if not kept.all():
            self._seeds, self._rows = self._seeds[kept], self._rows[:, kept]
