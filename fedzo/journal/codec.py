"""Records to protobuf payloads and back. Beside it only the artifact's codec and `fedzo/wire` import protobuf.

A payload is hashed as it was written, never written again to check it, so nothing rests on protobuf's choice of
bytes; it is serialised deterministically all the same, so that equal runs give equal journals.
"""

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.errors import ConfigError, JournalDamageError, JournalFormatError
from fedzo.journal.records import (
    NUMERICS_VERSION,
    PROTOCOL_VERSION,
    Body,
    Calibration,
    ClientEvaluation,
    ClientReport,
    Commit,
    End,
    Enrolment,
    Entry,
    Evaluation,
    Genesis,
    Record,
    Rollback,
    Rules,
    Start,
    Task,
    Void,
)
from fedzo.noise import Distribution
from fedzo.noise.draws import pool_seeds
from fedzo.noise.increments import COEFFICIENT_LIMIT
from fedzo.scopes import Kind, Scope
from fedzo.v1 import journal_pb2 as pb

_Message = TypeVar("_Message", pb.Genesis, pb.Record, pb.Start)
_SCALARS = (str, bytes, int, float)


def encode_genesis(genesis: Genesis) -> bytes:
    """The payload of the first frame."""
    message = pb.Genesis(
        protocol_version=PROTOCOL_VERSION,
        numerics_version=NUMERICS_VERSION,
        base_digest=genesis.base_digest,
        manifest=[
            pb.Tensor(name=t.name, shape=t.shape, exponent=t.exponent, max_abs=t.max_abs) for t in genesis.manifest
        ],
        distribution=genesis.distribution.value,
        run_seed=genesis.run_seed,
        scope=genesis.scope.kind.value,
        task=encode_task(genesis.task),
        rules=pb.Rules(**asdict(genesis.rules), scope=encode_scope(genesis.scope)),
    )
    return message.SerializeToString(deterministic=True)


def decode_genesis(payload: bytes) -> Genesis:
    """Raises JournalFormatError for a genesis of another version."""
    message = _parse(pb.Genesis(), payload)
    for what, seen, expected in (
        ("protocol", message.protocol_version, PROTOCOL_VERSION),
        ("numerics", message.numerics_version, NUMERICS_VERSION),
    ):
        if seen != expected:
            raise JournalFormatError(
                f"the journal follows {what} version {seen}; this fedzo knows version {expected}: "
                "use the fedzo that wrote it"
            )
    if message.distribution not in tuple(Distribution):
        raise JournalFormatError(
            f"the journal has distribution {message.distribution!r}; this fedzo knows {', '.join(Distribution)}"
        )
    try:
        scope = decode_scope(message.scope, message.rules.scope)
    except ConfigError as error:
        raise JournalFormatError(f"the journal cannot be followed: {error}; use the fedzo that wrote it") from error
    if len(message.base_digest) != 32:
        raise JournalFormatError(f"the base digest has {len(message.base_digest)} bytes; expected 32")
    return Genesis(
        base_digest=message.base_digest,
        manifest=Manifest(tuple(TensorSpec(t.name, tuple(t.shape), t.exponent, t.max_abs) for t in message.manifest)),
        distribution=Distribution(message.distribution),
        run_seed=message.run_seed,
        scope=scope,
        task=decode_task(message.task),
        rules=Rules(**_values(Rules, message.rules)),
    )


def encode_task(task: Task) -> pb.Task:
    """A task as a message, for a genesis or an artifact."""
    return pb.Task(**asdict(task))


def decode_task(message: pb.Task) -> Task:
    """The task that a message holds."""
    return Task(**_values(Task, message))


def encode_scope(scope: Scope) -> pb.Scope | None:
    """The settings of a scope as a message, for a genesis or an artifact; None where it has none."""
    return pb.Scope(**scope.settings) if scope.settings else None


def decode_scope(kind: str, message: pb.Scope) -> Scope:
    """The scope of that name and those settings.

    Raises:
        ConfigError: this fedzo does not know it.
    """
    if kind not in tuple(Kind):
        raise ConfigError(f"scope {kind!r} is unknown to this fedzo, which knows {', '.join(Kind)}")
    settings = {name: getattr(message, name) for name in message.DESCRIPTOR.fields_by_name}
    return Scope(kind=Kind(kind), **settings | {"lora_targets": tuple(message.lora_targets)})


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
    message = _parse(pb.Record(), payload)
    return Record(
        round=message.round,
        body=_decode_body(message),
        state_digest=message.state_digest or None,
        maxima=tuple(message.maxima) or None,
    )


def encode_start(genesis: Genesis, start: Start) -> bytes:
    """The payload of an excerpt's second frame; the seeds are left out, since they are the pool's, in its order."""
    totals = dict(start.entries)
    message = pb.Start(
        position=start.position,
        record_hash=start.record_hash,
        totals=[totals.get(seed, 0) for seed in pool_seeds(genesis.run_seed, genesis.rules.pool_size)],
        highest_rate=start.highest_rate,
        client=start.client,
        index=start.index,
    )
    return message.SerializeToString(deterministic=True)


def decode_start(genesis: Genesis, payload: bytes) -> Start:
    """Raises JournalDamageError for a payload that is no start of an excerpt of this run."""
    message = _parse(pb.Start(), payload)
    pool, limit = pool_seeds(genesis.run_seed, genesis.rules.pool_size), COEFFICIENT_LIMIT[genesis.distribution]
    for what, seen, expected in (
        ("totals", len(message.totals), len(pool)),
        ("bytes of a record hash", len(message.record_hash), 32),
    ):
        if seen != expected:
            raise JournalDamageError(f"the start of an excerpt has {seen} {what}; expected {expected}")
    if message.position == 0:
        raise JournalDamageError("the start of an excerpt is at position 0, where a journal starts")
    entries = tuple(Entry(seed, total) for seed, total in zip(pool, message.totals, strict=True) if total)
    for seed, total in entries:
        if abs(total) >= limit:
            raise JournalDamageError(f"seed {seed} has total {total}; expected one within ±{limit} (units of 2^-40)")
    return Start(
        position=message.position,
        record_hash=message.record_hash,
        entries=entries,
        highest_rate=message.highest_rate,
        client=message.client,
        index=message.index,
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


def _values(kind: type[Task] | type[Rules], message: pb.Task | pb.Rules) -> dict[str, Any]:
    """The fields of a dataclass from the message that has the same names; lists become tuples."""
    read = ((field.name, getattr(message, field.name)) for field in fields(kind))
    return {name: value if isinstance(value, _SCALARS) else tuple(value) for name, value in read}


def _parse(message: _Message, payload: bytes) -> _Message:
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise JournalDamageError(f"a payload that verifies is not a {type(message).__name__}: {error}") from error
    return message
