"""A client's own steps within a round, which are undone before the round's record comes (docs/concepts/estimation.md).

The latest few are an overlay; more are committed to the replica's integers in memory, several in one pass, since
an overlay costs at every use. Undoing subtracts them: exact, and without a second copy of the weights. While they are
taken the replica must not be written to disk or digested.
"""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from fedzo.journal.records import Entry, add_entries
from fedzo.noise.increments import COEFFICIENT_LIMIT
from fedzo.state.replica import Replica

_OVERLAID = 4
"""More seeds than this are committed: about where the uses of an overlay cost what a pass over the state does."""


class LocalSteps:
    """A context manager that leaves the replica as it was.

    Args:
        replica: may be shared by virtual clients, one after the other.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._latest: dict[int, int] = {}
        self._committed: dict[int, int] = {}

    def take(self, entries: Iterable[Entry]) -> bool:
        """Step along some directions; false where a seed's total has left its limit, and the client must stop."""
        limit = COEFFICIENT_LIMIT[self._replica.distribution]
        add_entries(self._latest, entries)
        totals = self._replica.totals
        return all(abs(totals.get(seed, 0) + step) < limit for seed, step in self._latest.items())

    def overlay(self) -> Mapping[int, int]:
        """The steps that are not in the replica's integers: what to evaluate at, coefficient of each seed."""
        if len(self._latest) > _OVERLAID:
            self._replica.add(Entry(*step) for step in self._latest.items())
            add_entries(self._committed, (Entry(*step) for step in self._latest.items()))
            self._latest = {}
        return self._latest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._replica.add(Entry(seed, -step) for seed, step in self._committed.items())
        self._committed, self._latest = {}, {}
