"""What the coordinator knows: a fold over the journal, and nothing else, so that a restart knows the same."""

from collections.abc import Sequence

from fedzo.coordinator.divergence import TRAINING_WINDOW, Divergence, LossWatch
from fedzo.journal.records import Commit, End, Enrolment, Entry, Evaluation, Genesis, Record, Rollback, Void
from fedzo.range_guard import RangeGuard, add_entries


class History:
    """The state of a run at a position of its journal."""

    def __init__(self, genesis: Genesis, genesis_hash: bytes) -> None:
        factor = genesis.rules.guard_factor
        self.genesis = genesis
        self.record_hash = genesis_hash
        self.records: list[Record] = []
        self.round = 0
        """The last round that ended, committed or void."""
        self.clients: dict[str, int] = {}
        """Index of each enrolled client's name."""
        self.rate_scale = 1.0
        self.evaluated_round = -1
        self.ended = False
        self.divergence: Divergence | None = None
        """Set by a record that shows one; cleared by the roll-back."""
        self.range_guard = RangeGuard(genesis.manifest, genesis.distribution)
        self._training = LossWatch("training", TRAINING_WINDOW, factor)
        self._held_out = LossWatch("held-out", 1, factor)

    @property
    def position(self) -> int:
        """Number of records applied."""
        return len(self.records)

    def apply(self, record: Record, record_hash: bytes) -> None:
        """Fold one record in.

        Raises:
            RangeGuardError: the record should not have been written.
        """
        self.range_guard.apply(record)
        before = self.position
        self.records.append(record)
        self.record_hash = record_hash
        match record.body:
            case Enrolment(first, names):
                self.clients.update({name: first + k for k, name in enumerate(names)})
            case Commit(reports=reports):
                self.round = record.round
                examples = sum(report.examples for report in reports)
                loss = sum(report.loss * report.examples for report in reports) / examples
                self.divergence = self._training.observe(loss, before)
            case Void(diverged=diverged):
                self.round = record.round
                if diverged:
                    self.divergence = self._training.observe(float("nan"), before)
            case Evaluation() as evaluation:
                self.evaluated_round = record.round
                if evaluation.clients:
                    self.divergence = self.divergence or self._held_out.observe(evaluation.loss, before)
            case Rollback(learning_rate_scale=scale):
                self.rate_scale *= scale
                self.divergence = None
                self._training.restart()
                self._held_out.restart()
            case End():
                self.ended = True

    def reported(self, round_number: int, client: int) -> bool:
        """Does a committed round count this client's report?"""
        for record in reversed(self.records):
            if record.round < round_number:
                return False
            if record.round == round_number and isinstance(record.body, Commit):
                return any(report.client == client for report in record.body.reports)
        return False


def rollback_entries(records: Sequence[Record], position: int) -> tuple[Entry, ...]:
    """The entries that bring the state after `records` back to where it was after the first `position` of them."""
    change: dict[int, int] = {}
    for record in records[position:]:
        add_entries(change, record.entries)
    return tuple(Entry(seed, -total) for seed, total in change.items())
