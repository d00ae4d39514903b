"""A journal as plain values for people and programs: the form of `fedzo journal show --json`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fedzo.journal.file import JournalContents
from fedzo.journal.records import End, Genesis, Record, Rollback, Start


def journal_view(contents: JournalContents) -> dict[str, Any]:
    """Genesis and records; seeds and coefficients as decimal strings, digests in hexadecimal."""
    records = contents.records[contents.first :]
    digests = state_digests(records, contents.first)
    return {
        "genesis": _genesis(contents.genesis) | {"record_hash": contents.hashes[0].hex()},
        **({} if contents.start is None else {"start": _start(contents.start)}),
        "records": [
            _record(position, record, contents.hashes[position], digests.get(position))
            for position, record in enumerate(records, start=contents.first + 1)
        ],
        "torn_bytes": contents.torn_bytes,
    }


def state_digests(records: Sequence[Record], first: int = 0) -> dict[int, bytes]:
    """The state digest at every position where it is known.

    A record states the digest of the state before it; a record without entries leaves the state as it was, and a
    roll-back returns to that of an earlier position.

    Args:
        records: from a position on.
        first: that position.
    """
    known = {p: record.state_digest for p, record in enumerate(records, first) if record.state_digest is not None}
    for position, record in enumerate(records, start=first + 1):
        if position in known:
            continue
        source = record.body.position if isinstance(record.body, Rollback) else position - 1
        if source in known and (isinstance(record.body, Rollback) or not record.entries):
            known[position] = known[source]
    return known


def said_of_end(contents: JournalContents) -> str:
    """Where a run has ended, in words; empty where it has not."""
    back = ""
    for position in range(contents.position, contents.first, -1):
        record = contents.records[position - 1]
        if isinstance(record.body, Rollback) and not back:
            back = f"; record {position} has since returned it to the state of position {record.body.position}"
        if isinstance(record.body, End):
            digest = "no digest agreed" if record.state_digest is None else f"state digest {record.state_digest.hex()}"
            return f"the run has ended at position {position}, round {record.round}, {digest}{back}"
    return ""


def _genesis(genesis: Genesis) -> dict[str, Any]:
    return {
        "base_digest": genesis.base_digest.hex(),
        "manifest_digest": genesis.manifest.digest().hex(),
        "manifest": [
            {"name": t.name, "shape": list(t.shape), "exponent": t.exponent, "max_abs": t.max_abs}
            for t in genesis.manifest
        ],
        "distribution": genesis.distribution.value,
        "run_seed": str(genesis.run_seed),
        "scope": genesis.scope.kind.value,
        **({"scope_settings": settings} if (settings := genesis.scope.settings) else {}),
        "task": asdict(genesis.task) | {"tokenizer_digest": genesis.task.tokenizer_digest.hex()},
        "rules": asdict(genesis.rules) | {"epsilon": str(genesis.rules.epsilon)},
    }


def _start(start: Start) -> dict[str, Any]:
    return {
        "position": start.position,
        "totals": [{"seed": str(e.seed), "coefficient": str(e.coefficient)} for e in start.entries],
        "record_hash": start.record_hash.hex(),
    }


def _record(position: int, record: Record, record_hash: bytes, digest: bytes | None) -> dict[str, Any]:
    body = asdict(record.body)
    body.pop("entries", None)
    for report in body.get("reports", ()):
        if not report["ticket"]:  # of a run with rounds
            del report["ticket"], report["staleness"]
    shown: dict[str, Any] = {
        "position": position,
        "round": record.round,
        "kind": type(record.body).__name__.lower(),
        **({"to_position": body.pop("position")} if isinstance(record.body, Rollback) else {}),
        **body,
        "entries": [{"seed": str(e.seed), "coefficient": str(e.coefficient)} for e in record.entries],
        "record_hash": record_hash.hex(),
    }
    if digest is not None:
        shown["state_digest"] = digest.hex()
    if record.maxima is not None:
        shown["maxima_before"] = list(record.maxima)
    return shown
