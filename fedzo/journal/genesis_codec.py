"""What a journal begins with, to protobuf payloads and back: its genesis, with task and scope, and an excerpt's start.

As `codec` does it for records.
"""

from dataclasses import asdict, fields
from typing import Any

from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.errors import ConfigError, JournalDamageError, JournalFormatError
from fedzo.journal.codec import parse
from fedzo.journal.records import NUMERICS_VERSION, PROTOCOL_VERSION, Entry, Genesis, Rules, Start, Task
from fedzo.noise import Distribution
from fedzo.noise.draws import pool_seeds
from fedzo.noise.increments import COEFFICIENT_LIMIT
from fedzo.scopes import Kind, Scope
from fedzo.v1 import journal_pb2 as pb

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
    message = parse(pb.Genesis(), payload)
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
    message = parse(pb.Start(), payload)
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


def _values(kind: type[Task] | type[Rules], message: pb.Task | pb.Rules) -> dict[str, Any]:
    """The fields of a dataclass from the message that has the same names; lists become tuples."""
    read = ((field.name, getattr(message, field.name)) for field in fields(kind))
    return {name: value if isinstance(value, _SCALARS) else tuple(value) for name, value in read}
