"""What a round, or a full buffer, comes to: the record that is to be written."""

from dataclasses import replace

from fedzo.coordinator.aggregation import commit_entries
from fedzo.coordinator.calibration import calibrated_rate
from fedzo.coordinator.history import History
from fedzo.coordinator.messages import Plan, Purpose, Report
from fedzo.coordinator.round import Closed
from fedzo.errors import RangeGuardError
from fedzo.journal.records import Calibration, ClientEvaluation, ClientReport, Commit, End, Evaluation, Record, Void
from fedzo.methods import get_method
from fedzo.methods.robust import clipped


def conclude_round(history: History, plan: Plan, closed: Closed) -> Record:
    """The record that ends a plan."""
    reports, digest = closed.reports, closed.digest
    if plan.purpose is Purpose.EVALUATE:
        held = tuple(ClientEvaluation(r.client, r.examples, r.loss, r.metric) for r in reports if r.examples)
        return Record(plan.round, Evaluation(held), digest, closed.maxima)
    if plan.purpose is Purpose.ATTEST:
        return Record(plan.round, End(), digest)
    quorum = history.genesis.rules.quorum
    good = [r for r in reports if not r.diverged]
    if plan.purpose is Purpose.CALIBRATE and (len(good) >= quorum or history.calibrated):
        return Record(plan.round, _calibration(history, good))
    reported = tuple(r.client for r in reports)
    if len(good) < quorum:
        diverged = any(r.diverged for r in reports)
        reason = f"{len(good)} of {len(plan.cohort)} clients gave scalars in time; quorum {quorum}"
        if diverged:
            reason += "; some losses were not finite"
        return Record(history.round + 1, Void(reason, reported, diverged), digest, closed.maxima)
    rules = history.genesis.rules
    lines = tuple(ClientReport(r.client, r.examples, r.loss, clipped(rules, r.projected_gradients)) for r in good)
    commit = _commit(history, plan.round, plan.learning_rate, lines)
    return _guarded(history, Record(plan.round, commit, digest, closed.maxima), reported)


def conclude_buffer(history: History, reports: list[Report], learning_rate: float) -> Record:
    """The record of reports that came one by one, in ascending order of client index and ticket.

    Clients are counted, not reports, of which one client may have sent many.
    """
    number = history.round + 1
    good = [r for r in reports if not r.diverged]
    reported = tuple(dict.fromkeys(r.client for r in reports))
    sound = {r.client for r in good}
    if 2 * len(sound) <= len(reported):
        reason = f"{len(sound)} of {len(reported)} clients have scalars; some losses were not finite"
        return Record(number, Void(reason, reported, diverged=True))
    lines = tuple(_with_staleness(history, report) for report in good)
    return _guarded(history, Record(number, _commit(history, number, learning_rate, lines)), reported)


def _with_staleness(history: History, report: Report) -> ClientReport:
    staleness = history.bases.staleness(report.record_hash)
    assert staleness is not None
    scalars = clipped(history.genesis.rules, report.projected_gradients)
    return ClientReport(report.client, report.examples, report.loss, scalars, report.round, staleness)


def _calibration(history: History, reports: list[Report]) -> Calibration:
    """The rate that was found; where too few reported, that of the calibration before, and nothing is made of them."""
    rules = history.genesis.rules
    if len(reports) < rules.quorum:
        return Calibration(history.learning_rate, ())
    lines = tuple(ClientReport(r.client, r.examples, r.loss, r.projected_gradients) for r in reports)
    found = history.with_calibration(lines)
    assert found is not None
    rate = calibrated_rate(get_method(rules.method), history.genesis, found, clients=len(lines))
    return Calibration(rate, lines)


def _commit(history: History, number: int, learning_rate: float, reports: tuple[ClientReport, ...]) -> Commit:
    entries = commit_entries(history.genesis, number, learning_rate, reports, history.memory)
    return Commit(entries, learning_rate, reports)


def _guarded(history: History, record: Record, reported: tuple[int, ...]) -> Record:
    """The record, or a void one where the range guard refuses it."""
    try:
        history.range_guard.check(record.entries, record.maxima)
    except RangeGuardError as error:
        return replace(record, body=Void(str(error), reported, diverged=False))
    return record
