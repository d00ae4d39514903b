"""How far a replica has gone since the anchor of a compute copy: a function of the journal alone (docs/numerics.md)."""

from collections.abc import Iterable, Mapping

from fedzo.journal.records import Entry, add_entries
from fedzo.noise import Term

PATIENCE = 16
"""A record after which more seeds than these have moved is the next anchor."""


class Drift:
    """Starts at position 0, which is an anchor."""

    def __init__(self) -> None:
        self.position = 0
        """Of the records told."""
        self.anchor = 0
        self.moved: dict[int, int] = {}
        """What was added to each seed's total since the anchor, local steps included."""

    def add(self, entries: Iterable[Entry]) -> None:
        """Entries were added to the totals."""
        add_entries(self.moved, entries)
        self.moved = {seed: change for seed, change in self.moved.items() if change}

    def settle(self) -> None:
        """They were those of a record, and no local steps are among them."""
        self.position += 1
        if len(self.moved) > PATIENCE:
            self.anchor, self.moved = self.position, {}

    def terms(self, totals: Mapping[int, int]) -> list[Term]:
        """What the totals have that the anchor has not."""
        return [Term(seed, totals.get(seed, 0) - change, totals.get(seed, 0)) for seed, change in self.moved.items()]
