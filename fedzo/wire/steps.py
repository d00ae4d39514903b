"""Records on the wire: as payloads, or as the reports from which a commit follows.

A receiver needs a payload's exact bytes, since the record hash covers them. A commit's entries are a function of its
reports, the method's `aggregate`, and most of its bytes; they are left out where the payload can be made again from
the rest. The sender tries that first, and the receiver's check of the hash confirms it.
"""

from collections.abc import Iterable
from contextlib import suppress

from fedzo.coordinator.aggregation import commit_entries
from fedzo.errors import ProtocolError
from fedzo.journal.codec import encode_record
from fedzo.journal.records import ClientReport, Commit, Genesis, Record
from fedzo.methods import get_method
from fedzo.v1 import rounds_pb2 as pb


def encode_step(genesis: Genesis, record: Record, payload: bytes, record_hash: bytes) -> pb.Step:
    """A record as the wire has it.

    Args:
        genesis: of the run.
        record: what the payload says.
        payload: the bytes in the journal.
        record_hash: after it.
    """
    if isinstance(record.body, Commit) and record.state_digest is None and record.maxima is None:
        columns = _columns(genesis, record.round, record.body)
        with suppress(ProtocolError):
            if _payload_of(genesis, columns) == payload:
                return pb.Step(record_hash=record_hash, commit=columns)
    return pb.Step(record_hash=record_hash, payload=payload)


def decode_steps(genesis: Genesis, steps: Iterable[pb.Step]) -> list[tuple[bytes, bytes]]:
    """(payload, record hash) of each step; whoever appends them checks that one follows from the other.

    Raises:
        ProtocolError: a step has no content, its columns do not fit each other, or no record can be made of them.
    """
    found = []
    for step in steps:
        kind = step.WhichOneof("content")
        if kind is None:
            raise ProtocolError("a step has no content that this fedzo knows; install the server's version")
        payload = step.payload if kind == "payload" else _payload_of(genesis, step.commit)
        found.append((payload, step.record_hash))
    return found


def _columns(genesis: Genesis, round_number: int, commit: Commit) -> pb.CommitReports:
    reports, asynchronous = commit.reports, genesis.rules.asynchronous
    return pb.CommitReports(
        round=round_number,
        learning_rate=commit.learning_rate,
        clients=[report.client for report in reports],
        examples=[report.examples for report in reports],
        losses=[report.loss for report in reports],
        projected_gradients=[scalar for report in reports for scalar in report.projected_gradients],
        tickets=[report.ticket for report in reports if asynchronous],
        staleness=[report.staleness for report in reports if asynchronous],
    )


def _payload_of(genesis: Genesis, message: pb.CommitReports) -> bytes:
    """The payload of the commit that follows from its reports, where earlier rounds have no part in it."""
    rules = genesis.rules
    reports = _rows(message, rules.directions * rules.local_steps, asynchronous=rules.asynchronous)
    memory = get_method(rules.method).memory(genesis)
    try:
        entries = commit_entries(genesis, message.round, message.learning_rate, reports, memory)
        return encode_record(Record(message.round, Commit(entries, message.learning_rate, reports)))
    except (ArithmeticError, ValueError) as error:
        raise ProtocolError(f"no entries follow from the reports of round {message.round}: {error}") from error


def _rows(message: pb.CommitReports, each: int, *, asynchronous: bool) -> tuple[ClientReport, ...]:
    count, scalars = len(message.clients), tuple(message.projected_gradients)
    if not len(message.examples) == len(message.losses) == count or len(scalars) != count * each:
        raise ProtocolError(
            f"a commit of {count} clients has {len(message.examples)} examples, {len(message.losses)} losses and "
            f"{len(scalars)} projected gradients; expected {count}, {count} and {count * each}"
        )
    told = count if asynchronous else 0
    if not len(message.tickets) == len(message.staleness) == told:
        raise ProtocolError(
            f"a commit of {count} clients has {len(message.tickets)} tickets and {len(message.staleness)} times "
            f"staleness; expected {told} of each"
        )
    nothing = [0] * (count - told)
    of_tickets = zip([*message.tickets, *nothing], [*message.staleness, *nothing], strict=True)
    columns = zip(message.clients, message.examples, message.losses, of_tickets, strict=True)
    return tuple(
        ClientReport(client, examples, loss, scalars[row * each : (row + 1) * each], *of_ticket)
        for row, (client, examples, loss, of_ticket) in enumerate(columns)
    )
