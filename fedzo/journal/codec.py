"""Records to protobuf payloads and back. Beside it only `genesis_codec`, the artifact's codec and `fedzo/wire` import
protobuf.

A payload is hashed as it was written, never written again to check it, so nothing rests on protobuf's choice of
bytes; it is serialised deterministically all the same, so that equal runs give equal journals.
"""

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import DecodeError

from fedzo.errors import JournalDamageError
from fedzo.journal.records import (
    Body,
    Calibration,
    ClientEvaluation,
    ClientReport,
    Commit,
    End,
    Enrolment,
    Entry,
    Evaluation,
    Record,
    Rollback,
    Void,
)
from fedzo.v1 import journal_pb2 as pb

Message = TypeVar("Message", pb.Genesis, pb.Record, pb.Start)


def encode_record(record: Record) -> bytes:
    """The payload of a record's frame."""
    message = pb.Record(round=record.round, state_digest=record.state_digest or b"", maxima=record.maxima or ())
    body = record.body
    match body:
        case Enrolment():
            message.enrolment.SetInParent()
            message.enrolment.first_index = body.first_index
            message.enrolment.clients.extend(body.clients)
        case Commit():
            message.commit.entries.CopyFrom(_entries(body.entries))
            message.commit.learning_rate = body.learning_rate
            message.commit.reports.extend(_client_report(report) for report in body.reports)
        case Void():
            message.void.reason = body.reason
            message.void.reported.extend(body.reported)
            message.void.diverged = body.diverged
        case Evaluation():
            message.evaluation.SetInParent()
            message.evaluation.clients.extend(
                pb.ClientEvaluation(client=c.client, examples=c.examples, loss=c.loss, metric=c.metric)
                for c in body.clients
            )
        case Calibration():
            message.calibration.learning_rate = body.learning_rate
            message.calibration.reports.extend(_client_report(report) for report in body.reports)
        case Rollback():
            message.rollback.position = body.position
            message.rollback.entries.CopyFrom(_entries(body.entries))
            message.rollback.learning_rate_scale = body.learning_rate_scale
            message.rollback.reason = body.reason
        case End():
            message.end.SetInParent()
    return message.SerializeToString(deterministic=True)


def decode_record(payload: bytes) -> Record:
    """Raises JournalDamageError for a payload that is no record."""
    message = parse(pb.Record(), payload)
    return Record(
        round=message.round,
        body=_decode_body(message),
        state_digest=message.state_digest or None,
        maxima=tuple(message.maxima) or None,
    )


def report_size(report: ClientReport) -> int:
    """Bytes of a report as protobuf: what a client sends in a round."""
    return _client_report(report).ByteSize()


def _decode_body(message: pb.Record) -> Body:
    match message.WhichOneof("body"):
        case "enrolment":
            return Enrolment(message.enrolment.first_index, tuple(message.enrolment.clients))
        case "commit":
            commit = message.commit
            return Commit(_decode_entries(commit.entries), commit.learning_rate, _decode_reports(commit.reports))
        case "void":
            return Void(message.void.reason, tuple(message.void.reported), message.void.diverged)
        case "evaluation":
            return Evaluation(tuple(_client_evaluation(c) for c in message.evaluation.clients))
        case "calibration":
            calibration = message.calibration
            return Calibration(calibration.learning_rate, _decode_reports(calibration.reports))
        case "rollback":
            back = message.rollback
            return Rollback(back.position, _decode_entries(back.entries), back.learning_rate_scale, back.reason)
        case "end":
            return End()
        case other:
            raise JournalDamageError(f"a record of kind {other!r} is unknown to this fedzo")


def _entries(entries: tuple[Entry, ...]) -> pb.Entries:
    return pb.Entries(seeds=[e.seed for e in entries], coefficients=[e.coefficient for e in entries])


def _decode_entries(entries: pb.Entries) -> tuple[Entry, ...]:
    if len(entries.seeds) != len(entries.coefficients):
        raise JournalDamageError(
            f"a record has {len(entries.seeds)} seeds and {len(entries.coefficients)} coefficients; expected as many"
        )
    return tuple(Entry(s, c) for s, c in zip(entries.seeds, entries.coefficients, strict=True))


def _decode_reports(messages: Iterable[pb.ClientReport]) -> tuple[ClientReport, ...]:
    return tuple(
        ClientReport(r.client, r.examples, r.loss, tuple(r.projected_gradients), r.ticket, r.staleness)
        for r in messages
    )


def _client_evaluation(message: pb.ClientEvaluation) -> ClientEvaluation:
    metric = message.metric if message.HasField("metric") else None
    return ClientEvaluation(message.client, message.examples, message.loss, metric)


def _client_report(report: ClientReport) -> pb.ClientReport:
    return pb.ClientReport(
        client=report.client,
        examples=report.examples,
        loss=report.loss,
        projected_gradients=report.projected_gradients,
        ticket=report.ticket,
        staleness=report.staleness,
    )


def parse(message: Message, payload: bytes) -> Message:
    """A message of a payload's bytes. Raises JournalDamageError where they are none."""
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise JournalDamageError(f"a payload that verifies is not a {type(message).__name__}: {error}") from error
    return message
