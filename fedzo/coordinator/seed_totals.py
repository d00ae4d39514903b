"""The total of every seed that a run has used, in a temporary database: memory does not grow with the seeds.

Seeds of a run are as many as its reports, so a dictionary of them would be most of what a server holds. SQLite keeps a
cache of two megabytes and puts the rest into a file without a name, which the system takes back with the process.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_SIGN = 2**63
"""SQLite's integers are signed: a seed is its key plus this."""
_TABLE = "CREATE TABLE seeds (seed INTEGER PRIMARY KEY, total INTEGER, anchor INTEGER, anchored INTEGER)"
_FIND = "SELECT total, CASE WHEN anchored = ? THEN anchor ELSE total END FROM seeds WHERE seed = ?"
_PUT = "INSERT OR REPLACE INTO seeds VALUES (?, ?, ?, ?)"


class SeedTotals:
    """A(s) of every seed, and Aₚ(s), what it was at the last `anchor`; both 0 for a seed never set."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(_TABLE)
        self._anchored = 0
        """How often `anchor` was called. A row with less than that was not set since: its Aₚ is its A."""

    def of(self, seeds: Sequence[int]) -> NDArray[np.int64]:
        """int64[2, seeds]: A and Aₚ."""
        find = self._database.execute
        rows = [find(_FIND, (self._anchored, seed - _SIGN)).fetchone() or (0, 0) for seed in seeds]
        return np.array(rows, dtype=np.int64).reshape(-1, 2).T

    def put(self, totals: Mapping[int, int], anchors: Sequence[int]) -> None:
        """Set A of some seeds, whose Aₚ is as `of` found it.

        Raises:
            OSError: there is no room for the file.
        """
        rows = zip(totals.items(), anchors, strict=True)
        try:
            self._database.execute("BEGIN")
            self._database.executemany(_PUT, ((seed - _SIGN, a, anchor, self._anchored) for (seed, a), anchor in rows))
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise OSError(
                f"the totals of the run's seeds could not be kept in a temporary file: {error}; free some room, or "
                "name a directory that has it in the variable SQLITE_TMPDIR (/var/tmp is taken else), and start again"
            ) from error

    def anchor(self) -> None:
        """Aₚ = A, for all seeds."""
        self._anchored += 1

    def nonzero(self) -> Iterator[tuple[int, int]]:
        """Seeds and their A, where that is not 0."""
        return self._seeds_with("total")

    def nonzero_anchors(self) -> Iterator[tuple[int, int]]:
        """Seeds and their Aₚ, where that is not 0."""
        return self._seeds_with(f"CASE WHEN anchored = {self._anchored} THEN anchor ELSE total END")

    def _seeds_with(self, value: str) -> Iterator[tuple[int, int]]:
        rows = self._database.execute(f"SELECT seed, {value} AS value FROM seeds WHERE value")
        return ((key + _SIGN, value) for key, value in rows)
