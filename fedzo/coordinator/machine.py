"""The coordinator: a state machine that plans rounds, collects reports and decides on records.

Events in, decisions out; no sockets, files, clocks or weights, so that the simulator and every transport drive the
same one. Its memory is the journal (`History`); a round under way is all that a crash forgets, and that round is
planned again, the same.

    idle ──announce──▶ collecting ──all reported, or deadline──▶ appending ──Appended──▶ idle … ──▶ ended
"""

from fedzo.coordinator.buffer import Buffer, NewPlanNeededError
from fedzo.coordinator.conclusions import conclude_buffer, conclude_round
from fedzo.coordinator.history import History
from fedzo.coordinator.messages import (
    Accept,
    Announce,
    Append,
    Appended,
    Connected,
    Decision,
    Disconnected,
    Event,
    Finish,
    Plan,
    Purpose,
    Refuse,
    Report,
    Tick,
)
from fedzo.coordinator.round import Round
from fedzo.coordinator.schedule import scheduled_rate
from fedzo.errors import ProtocolError
from fedzo.journal.file import JournalContents
from fedzo.journal.records import Enrolment, Record, Rollback
from fedzo.methods import get_method
from fedzo.noise.draws import choose_cohort

MEASURE_ABOVE = 0.5
"""Maxima are asked for once the range guard's sum has used this share of its room."""


class Coordinator:
    """One run. Time is given in seconds on any clock that does not go back.

    Args:
        contents: the journal so far; a record is in it before `Appended` says so.
    """

    def __init__(self, contents: JournalContents) -> None:
        self.history = History(contents)
        self.history.catch_up()
        self._rules = contents.genesis.rules
        self.history.range_guard.check_perturbation(self._rules.epsilon)
        get_method(self._rules.method).check(self._rules)
        self._connected: set[str] = set()
        self._round: Round | None = None
        self._buffer = Buffer(self.history) if self._rules.asynchronous else None
        self._last: tuple[Purpose, int] | None = None
        self._last_counted: set[int] = set()
        self._pending: Record | None = None

    def handle(self, event: Event, now_s: float) -> list[Decision]:
        """What follows from an event. A report that must not count is refused and changes nothing."""
        match event:
            case Connected():
                self._connected |= set(event.names)
                return self.begin(now_s)
            case Disconnected():
                self._connected.discard(event.name)
                if self._buffer is not None and event.name in self.history.clients:
                    self._buffer.leave(self.history.clients[event.name])
                return []
            case Report():
                try:
                    return self._report(event, now_s)
                except NewPlanNeededError as error:
                    return [Refuse(event.client, str(error)), *self._begin_anew(event.client, now_s)]
                except ProtocolError as error:
                    return [Refuse(event.client, str(error))]
            case Tick():
                return self._close(self._round) if self._round is not None and self._round.overdue(now_s) else []
            case Appended():
                return self._appended(event, now_s)

    def begin(self, now_s: float) -> list[Decision]:
        """Plan what comes next, if nothing is under way and enough clients are there."""
        if self._round is not None or self._pending is not None:
            return []
        history = self.history
        if history.ended:
            return [Finish()]
        if not self._connected <= history.clients.keys():
            return self._enrol()
        if history.divergence is not None:
            return self._append(self._rollback())
        available = sorted(history.clients[name] for name in self._connected)
        if len(available) < self._rules.quorum:
            return []
        if self._evaluation_is_due():
            return self._announce(Purpose.EVALUATE, tuple(available), now_s)
        if history.round < self._rules.rounds:
            if history.calibration_is_due:
                return self._announce(Purpose.CALIBRATE, self._cohort(history.round + 1, available), now_s)
            if self._buffer is not None:
                return self._go_on(self._buffer, available)
            number = history.round + 1
            return self._announce(Purpose.TRAIN, self._cohort(number, available), now_s)
        if self._buffer is not None:
            self._buffer.clear()
        return self._announce(Purpose.ATTEST, tuple(available), now_s)

    # ── clients ─────────────────────────────────────────────────────────────────────────────────────

    def _enrol(self) -> list[Decision]:
        """All new ones who are there, in order of name: a record must not depend on who came first."""
        names = tuple(sorted(self._connected - self.history.clients.keys(), key=str.encode))
        return self._append(Record(self.history.round, Enrolment(len(self.history.clients), names)))

    def _report(self, report: Report, now_s: float) -> list[Decision]:
        if self._buffer is not None and report.purpose is Purpose.TRAIN:
            return self._collect(self._buffer, report, now_s)
        current = self._round
        if current is None or (report.purpose, report.round) != current.key:
            if self._answered(report):
                return [Accept(report.client, duplicate=True)]
            raise ProtocolError(f"no {report.purpose} plan of round {report.round} is open; wait for the next plan")
        counts = current.add(report)
        accepted = Accept(report.client, duplicate=not counts)
        return [accepted, *self._close(current)] if counts and current.complete else [accepted]

    def _answered(self, report: Report) -> bool:
        """Is this a report that the last plan, or one of the latest records, has already dealt with?"""
        if (report.purpose, report.round) == self._last and report.client in self._last_counted:
            return True
        return self.history.answered.has(report.purpose, report.round, report.client)

    # ── rounds ──────────────────────────────────────────────────────────────────────────────────────

    def _evaluation_is_due(self) -> bool:
        """Where there are no rounds, an evaluation is also what a state is attested by."""
        done = self.history.round
        due = self.history.evaluation_is_regular or self.history.doubt.stands
        if self._buffer is not None and 0 < done < self._rules.rounds:
            due = due or self._attestation_is_due(done)
        return due and self.history.evaluated_round != done

    def _attestation_is_due(self, number: int) -> bool:
        every = self._rules.attest_every
        return (every > 0 and number % every == 0) or self.history.range_guard.share_used > MEASURE_ABOVE

    def _cohort(self, number: int, available: list[int]) -> tuple[int, ...]:
        if len(available) <= self._rules.cohort:
            return tuple(available)
        return choose_cohort(self.history.genesis.run_seed, number, available, self._rules.cohort)

    def _announce(self, purpose: Purpose, cohort: tuple[int, ...], now_s: float) -> list[Decision]:
        training = purpose is Purpose.TRAIN
        number = self.history.round + training
        together = self._buffer is not None and purpose is Purpose.EVALUATE
        plan = Plan(
            purpose=purpose,
            round=number,
            position=self.history.position,
            record_hash=self.history.record_hash,
            cohort=cohort,
            learning_rate=self._rate(number) if training else 0.0,
            attest=purpose is Purpose.ATTEST or together or (training and self._attestation_is_due(number)),
            deadline_s=self._rules.deadline_s,
        )
        self._round = Round(self.history.genesis, plan, now_s)
        return [Announce(plan)]

    def _rate(self, number: int) -> float:
        history = self.history
        return scheduled_rate(self._rules, history.learning_rate, number) * history.rate_scale

    def _close(self, current: Round) -> list[Decision]:
        closed = current.close()
        self._round, self._last, self._last_counted = None, current.key, {r.client for r in closed.reports}
        return [*closed.refused, *self._append(conclude_round(self.history, current.plan, closed))]

    def _rollback(self) -> Record:
        divergence = self.history.divergence
        assert divergence is not None
        target, history = divergence.position, self.history
        scale = history.setbacks.scale(target, history.position + 1)
        body = Rollback(target, history.undoing(target), scale, divergence.reason)
        return Record(history.round, body)

    # ── without rounds ──────────────────────────────────────────────────────────────────────────────

    def _go_on(self, buffer: Buffer, available: list[int]) -> list[Decision]:
        """Commit what has come, if it is enough; then a plan for everyone who has none."""
        if buffer.full:
            return self._append(conclude_buffer(self.history, buffer.take(), self._rate(self.history.round + 1)))
        return self._issue(buffer, available)

    def _issue(self, buffer: Buffer, clients: list[int]) -> list[Decision]:
        return [Announce(plan) for plan in buffer.issue(clients, self._rate(self.history.round + 1))]

    def _collect(self, buffer: Buffer, report: Report, now_s: float) -> list[Decision]:
        if self.history.round >= self._rules.rounds and report.round > self.history.tickets.get(report.client, 0):
            raise ProtocolError("the training is over; wait for the next plan")
        counts = buffer.add(report)
        accepted = Accept(report.client, duplicate=not counts)
        if counts and not buffer.full and self._round is None and self._pending is None:
            return [accepted, *self._issue(buffer, [report.client])]  # without a look at all who are there
        return [accepted, *self.begin(now_s)]

    def _begin_anew(self, client: int, now_s: float) -> list[Decision]:
        """A client's plan came to nothing: give it one for where the run is now."""
        if self._buffer is not None:
            self._buffer.leave(client)
        return self.begin(now_s)

    # ── records ─────────────────────────────────────────────────────────────────────────────────────

    def _append(self, record: Record) -> list[Decision]:
        self._pending = record
        return [Append(record)]

    def _appended(self, event: Appended, now_s: float) -> list[Decision]:
        if event.record is not self._pending:
            raise ProtocolError("a record was appended that the coordinator did not decide on")
        self._pending = None
        self.history.apply(event.record, event.record_hash)
        if self._buffer is not None:
            self._buffer.appended(event.record)
        return self.begin(now_s)
