"""The replica: base + journal, as an exact state that knows where in the journal it stands."""

from collections.abc import Sequence
from pathlib import Path

from fedzo.errors import BaseMismatchError, ReplicaError
from fedzo.journal.records import Entry, Genesis, Record, Start, add_entries
from fedzo.state.drift import Drift
from fedzo.state.exact_state import ExactState
from fedzo.tiers.page import Page


class Replica(ExactState):
    """The exact state of every trained tensor at a position of a journal; it is made as an `ExactState` is."""

    position = 0
    record_hash = b""

    def fill(self) -> None:
        """Make the integers those of the base taken last, at position 0."""
        super().fill()
        self.position = 0

    def start_at(self, genesis: Genesis, base_digest: bytes, genesis_hash: bytes) -> None:
        """Bind to a journal at position 0.

        Raises:
            BaseMismatchError: the journal was made from another base.
            ReplicaError: it has another scope.
        """
        if genesis.base_digest != base_digest:
            raise BaseMismatchError(
                f"the journal was made from base {genesis.base_digest.hex()[:16]}…, this base is "
                f"{base_digest.hex()[:16]}…; give the base that the run started from"
            )
        if genesis.scope != self.scope:
            raise ReplicaError(
                f"the journal has scope {genesis.scope.describe()}, this replica was made for {self.scope.describe()}; "
                "leave the scope's options out where a run is resumed, they are the journal's"
            )
        if genesis.manifest != self.manifest:
            raise BaseMismatchError(
                "the base has the journal's digest but its tensors differ from the journal's manifest; "
                "use the transformers version of constraints.txt"
            )
        self.record_hash = genesis_hash

    def apply(self, record: Record, record_hash: bytes) -> None:
        """Move one position on.

        Raises:
            ReplicaError: the record states another digest, or other maxima, than this state has; nothing changed.
        """
        self._check(record)
        self.add(record.entries)
        self.drift.settle()
        self.position += 1
        self.record_hash = record_hash
        self._settle()

    def resume(self, records: Sequence[Record], hashes: Sequence[bytes], start: Start | None = None) -> None:
        """Catch up with a journal from this replica's position, as `statefile.load_state` or a base left it.

        Args:
            records: the whole journal's.
            hashes: the record hash at every position, len(records) + 1.
            start: where the journal is an excerpt.
        """
        self._integers.totals, self.drift = {}, Drift()
        if start is not None:
            self.begin(start)
        for record in records[0 if start is None else start.position : self.position]:
            add_entries(self.totals, record.entries)
            self._follow(record)
        self.catch_up(records[self.position :], hashes[self.position + 1 :])

    def begin(self, start: Start) -> None:
        """Have the totals of an excerpt's start; where the integers are the base's, go there."""
        if self.position >= start.position:
            add_entries(self.totals, start.entries)
        else:
            self._integers.add(start.entries)
            self.position, self.record_hash = start.position, start.record_hash

    def catch_up(self, records: Sequence[Record], hashes: Sequence[bytes]) -> None:
        """`replay`, with what is stated of the state checked where it is stated last.

        The state is a function of the totals, so that the last digest speaks for the earlier ones; and each seed is
        added once, which of a pool of K seeds is at most K, however many the records are.
        """
        stating = (k for k, r in enumerate(records) if r.state_digest is not None or r.maxima is not None)
        last = max(stating, default=0)
        self._integers.add([entry for record in records[:last] for entry in record.entries])
        for record in records[:last]:
            self._follow(record)
        if last:
            self.position += last
            self.record_hash = hashes[last - 1]
        self.replay(records[last:], hashes[last:])

    def replay(self, records: Sequence[Record], hashes: Sequence[bytes]) -> None:
        """Apply records in order, batching the entries between those that state a digest or maxima.

        Args:
            records: from this replica's position on.
            hashes: the record hash after each.
        """
        pending: list[Entry] = []
        for record, digest in zip(records, hashes, strict=True):
            if record.state_digest is not None or record.maxima is not None:
                self._integers.add(pending)
                pending = []
                self._check(record)
            pending += record.entries
            self._follow(record)
            self.position += 1
            self.record_hash = digest
        self._integers.add(pending)
        self._settle()

    def _follow(self, record: Record) -> None:
        """Tell the drift of a record's entries, which the integers are given in batches."""
        self.drift.add(record.entries)
        self.drift.settle()

    def keep(self, path: Path) -> None:
        """Make the state durable in a file; one that it lives in may be a few records behind, as `load` finds it.

        Raises:
            StateFileError: the disk refused.
            ReplicaError: the integers are not a state.
        """
        self._integers.require_whole()
        if self.store.page is None or self._integers.behind > self.store.patience:
            digest, _ = self._integers.survey()
            self.store.keep(path, Page(self.position, self.record_hash, digest, self.manifest.digest()))

    def load(self, path: Path, page: Page) -> None:
        """Take over the integers of a state file that was checked, and its place in the journal (not its totals)."""
        self._cover()
        self._integers.load(path, page)
        self._weights, self.position, self.record_hash = [], page.position, page.record_hash

    def _settle(self) -> None:
        """At the end of a record: rewrite a store that is far behind, and keep one on disk clean."""
        store = self.store
        if self._integers.behind > store.patience or (store.path is not None and store.page is None):
            if store.path is None:
                self._integers.rewrite()
            else:
                self.keep(store.path)

    def _surveyed(self) -> tuple[bytes, tuple[int, ...]]:
        """Digest and maxima; one pass finds both, and leaves a file clean."""
        found = self._integers.survey()
        if self.store.path is not None and self.store.page is None:
            self.keep(self.store.path)
        return found

    def _check(self, record: Record) -> None:
        if record.state_digest is not None and record.state_digest != self.digest():
            raise ReplicaError(
                f"at position {self.position} this replica's state digest is {self.digest().hex()[:16]}…, the journal "
                f"states {record.state_digest.hex()[:16]}…; rebuild the replica from base and journal"
            )
        if record.maxima is not None and record.maxima != self.maxima():
            raise ReplicaError(
                f"at position {self.position} record {self.position + 1} states maxima that this replica lacks; "
                "rebuild the replica from base and journal"
            )
