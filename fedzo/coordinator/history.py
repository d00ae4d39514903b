"""What the coordinator knows: a fold over the journal, and nothing else, so that a restart knows the same.

It holds no records: those it needs again, to undo them or for the method's memory, it looks up in the journal.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from typing import Any

from fedzo.coordinator.answered import Answered
from fedzo.coordinator.bases import Bases
from fedzo.coordinator.calibration import Measured, calibration_due, measured
from fedzo.coordinator.divergence import Divergence, Doubt, LossWatch, Setbacks, training_window
from fedzo.coordinator.range_guard import RangeGuard
from fedzo.errors import ExcerptError, ReplicaError
from fedzo.journal.file import JournalContents
from fedzo.journal.records import (
    Calibration,
    ClientReport,
    Commit,
    End,
    Enrolment,
    Entry,
    Evaluation,
    Record,
    Rollback,
    Start,
    Void,
    add_entries,
)
from fedzo.methods import get_method


class History:
    """The state of a run at a position of its journal, at first where the journal's records begin.

    Of an excerpt it knows what a client needs, and not what plans rounds.

    Args:
        contents: the journal, as far as that position at least; it may grow.
    """

    def __init__(self, contents: JournalContents) -> None:
        genesis = contents.genesis
        factor = genesis.rules.guard_factor
        self.genesis = genesis
        self.position = 0
        """Number of records applied."""
        self.record_hash = contents.hashes[0]
        self._contents = contents
        self._rollbacks: dict[int, int] = {}
        """Where each roll-back went: the record's number → position."""
        self.loss: float | None = None
        """Of the last commit."""
        self.round = 0
        """The last round that ended, committed or void."""
        self.clients: dict[str, int] = {}
        """Index of each enrolled client's name."""
        self.learning_rate = genesis.rules.learning_rate
        """The schedule's full rate: the rules', or that of the last calibration."""
        self.tickets: dict[int, int] = {}
        """The last ticket of each client that a commit has; of asynchronous runs."""
        self.bases = Bases(self.record_hash, genesis.rules.max_staleness)
        self.highest_rate = self.learning_rate
        """That a plan of this run may have had so far."""
        self.rate_scale = 1.0
        """What roll-backs multiplied it by."""
        self._calibrated: int | None = None
        self._measured: Measured | None = None
        self.answered = Answered()
        self.evaluated_round = -1
        self.ended = False
        self.divergence: Divergence | None = None
        """Set by a record that shows one; cleared by the roll-back."""
        self.range_guard = RangeGuard(genesis.manifest, genesis.distribution, genesis.scope)
        self.anchor = 0
        """Position whose maxima a standing record stated last; the range guard's anchors are the totals there."""
        self._begin_to_judge()
        self._training = LossWatch("training", training_window(genesis.rules), factor)
        self._held_out = LossWatch("held-out", 1, factor)
        self._evaluated: set[int] = set()
        self._memory: Any = None
        self._remembered = 0
        if contents.start is not None:
            self._begin(contents.start)

    def _begin_to_judge(self) -> None:
        """Know of no doubts and no setbacks."""
        rules = self.genesis.rules
        window = training_window(rules)
        self.doubt = Doubt(rules.guard_factor, early=rules.evaluate_every > 0)
        self.setbacks = Setbacks(window, soon=4 * window + rules.evaluate_every)

    def _begin(self, start: Start) -> None:
        self.position, self.record_hash = start.position, start.record_hash
        self.clients = {start.client: start.index} if start.client else {}
        self.highest_rate = max(self.learning_rate, start.highest_rate)
        self.range_guard.begin(start.entries)

    @property
    def first(self) -> int:
        """Position from which the records are here; of an excerpt that of its start."""
        return self._contents.first

    def catch_up(self) -> None:
        """Apply what the journal has beyond this position; raises as `apply`."""
        for position in range(self.position, self._contents.position):
            self.apply(self._contents.records[position], self._contents.hashes[position + 1])

    def undoing(self, position: int) -> tuple[Entry, ...]:
        """The entries that bring the state back to where it was at an earlier position."""
        return rollback_entries(self._contents.records[k] for k in range(position, self.position))

    @property
    def commits(self) -> Iterator[Record]:
        """Those that no roll-back undid."""
        records = (self._contents.records[k] for k in self._standing(self.position))
        return (record for record in records if isinstance(record.body, Commit))

    @property
    def anchor_is_behind(self) -> bool:
        """Does every roll-back since the anchor lead to a position after it, so that it can be followed from there?"""
        return all(to > self.anchor for number, to in self._rollbacks.items() if number > self.anchor)

    @property
    def calibrated(self) -> bool:
        """Was the learning rate found, and no roll-back came since?"""
        return self._calibrated is not None

    def with_calibration(self, reports: Sequence[ClientReport]) -> Measured | None:
        """What is known of slope and curvature, these reports included; after a roll-back curvature anew."""
        if not reports:
            return self._measured
        now = measured(self.genesis.rules, reports)
        return now if self._measured is None else self._measured.followed_by(now)

    @property
    def calibration_is_due(self) -> bool:
        """Is the learning rate to be found, or found anew, before the next round?"""
        rules = self.genesis.rules
        return rules.calibrated and calibration_due(rules, self.round, self._calibrated)

    @property
    def evaluation_is_regular(self) -> bool:
        """Is the state after this round evaluated whatever the losses?"""
        rules = self.genesis.rules
        return rules.evaluate_every > 0 and (self.round % rules.evaluate_every == 0 or self.round == rules.rounds)

    @property
    def memory(self) -> Any:
        """What the run's method keeps of the commits that no roll-back undid.

        Folded when asked for: who only replays may lack the method.
        """
        method = get_method(self.genesis.rules.method)
        if not self._remembered:
            self._memory = method.memory(self.genesis)
        for k in self._standing(self.position, since=self._remembered):
            if isinstance((record := self._contents.records[k]).body, Commit):
                self._memory = method.remember(self.genesis, self._memory, record)
        self._remembered = self.position
        return self._memory

    def apply(self, record: Record, record_hash: bytes) -> None:
        """Fold in the record that the journal has next.

        Raises:
            RangeGuardError: the record should not have been written.
            ReplicaError: a roll-back that does not return to the state it names.
            ExcerptError: a roll-back to where an excerpt has no records.
        """
        if isinstance(record.body, Rollback):
            self._check_rollback(record.body)
            self._return_to(record.body.position)
        else:
            self._guard(self.position, record)
        before = self.position
        self.position += 1
        self.record_hash = record_hash
        self.round = record.round
        self.answered.add(record)
        if self.genesis.rules.asynchronous:
            self.bases.add(record_hash, self.position, record.body)
        match record.body:
            case Enrolment(first, names):
                self.clients.update({name: first + k for k, name in enumerate(names)})
            case Commit() as commit:
                self.loss = commit.loss
                self.tickets |= {report.client: report.ticket for report in commit.reports if report.ticket}
                self.divergence = self._training.observe(self.loss, before)
                self.doubt.committed(self.loss)
            case Void() as void:
                self._observe_void(void, before)
            case Evaluation() as evaluation:
                self.evaluated_round = record.round
                self._observe_held_out(evaluation, before)
            case Calibration(learning_rate=rate, reports=reports):
                self.learning_rate, self.highest_rate = rate, max(rate, self.highest_rate)
                self._measured = self.with_calibration(reports)
                self._calibrated = record.round
            case Rollback(position=target, learning_rate_scale=scale):
                self._went_back(target, scale)
            case End():
                self.ended = True

    def _went_back(self, target: int, scale: float) -> None:
        """The last record is a roll-back."""
        self._rollbacks[self.position] = target
        self.rate_scale *= scale
        self._calibrated = None
        if self._measured is not None:
            self._measured = self._measured.forgetting_curvature()
        self.divergence = None
        self._training.restart(target)
        self._held_out.restart(target)
        if scale < 1.0:
            self.setbacks.add(target, self.position)
            self.doubt.went_back(target)
        else:  # it was asked for
            self._begin_to_judge()

    def _observe_void(self, void: Void, position: int) -> None:
        rules = self.genesis.rules
        if void.diverged:
            self.divergence = self._training.observe(float("nan"), position)
            return
        a_calibration = rules.calibrated and not self.calibrated
        for_want_of_reports = not rules.asynchronous and len(void.reported) < rules.quorum
        if not (a_calibration or for_want_of_reports):
            self.doubt.refused()

    def _observe_held_out(self, evaluation: Evaluation, position: int) -> None:
        """In doubt, and where other clients answer than before, it is judged client by client; else by the mean."""
        doubted, finite = self.doubt.stands, isfinite(evaluation.loss)
        clients = {client.client for client in evaluation.clients if isfinite(client.loss)}
        if (doubted or clients != self._evaluated) and self.doubt.is_shared(evaluation):
            limit = f"{self.genesis.rules.guard_factor:g} × their best"
            self.divergence = self._held_out.diverged(f"most clients' held-out losses are above {limit}")
        elif evaluation.clients and (self.evaluation_is_regular or not doubted or not finite):
            if finite and clients != self._evaluated:
                self._evaluated = clients
                self._held_out = LossWatch("held-out", 1, self.genesis.rules.guard_factor, position)
            self.divergence = self._held_out.observe(evaluation.loss, position)
        if self.divergence is None:
            self.doubt.passed(evaluation, position)

    def _guard(self, position: int, record: Record) -> None:
        """Have the range guard check a record of the state at a position."""
        self.range_guard.apply(record)
        if record.maxima is not None:
            self.anchor = position

    def _check_rollback(self, body: Rollback) -> None:
        first = self._contents.first
        if self._contents.start is not None and body.position <= first:
            raise ExcerptError(
                f"record {self.position + 1} returns to position {body.position}, and this copy of the journal begins "
                f"with the totals at position {first}; it has to be begun anew"
            )
        if not body.position <= self.position or sorted(self.undoing(body.position)) != sorted(body.entries):
            raise ReplicaError(
                f"record {self.position + 1} does not return to the state after record {body.position}; "
                "the journal was not written by fedzo"
            )

    def _return_to(self, position: int) -> None:
        """Make the range guard that of an earlier position, as a roll-back does the state, and forget the memory."""
        self.range_guard = RangeGuard(self.genesis.manifest, self.genesis.distribution, self.genesis.scope)
        self.anchor = 0
        if self._contents.start is not None:
            self.range_guard.begin(self._contents.start.entries)
        for k in self._standing(position):
            self._guard(k, self._contents.records[k])
        self._remembered = 0

    def _standing(self, position: int, since: int = 0) -> Iterator[int]:
        """The positions before the records that a state is made of, without those that were undone and the roll-backs.

        Args:
            position: up to the present one.
            since: skip those up to this position, which no later roll-back may have undone.
        """
        spans, since = [], max(since, self._contents.first)
        while position > since:
            back = max((number for number in self._rollbacks if number <= position), default=0)
            spans.append(range(max(back, since), position))
            position = self._rollbacks.get(back, 0)
        return (k for span in reversed(spans) for k in span)


def rollback_entries(undone: Iterable[Record]) -> tuple[Entry, ...]:
    """The entries that negate those of some records, by seed."""
    change: dict[int, int] = {}
    for record in undone:
        add_entries(change, record.entries)
    return tuple(Entry(seed, -total) for seed, total in change.items())
