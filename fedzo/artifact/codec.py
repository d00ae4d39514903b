"""Artifacts to protobuf payloads and back. Equal artifacts are written as equal bytes."""

from itertools import pairwise

from google.protobuf.message import DecodeError

from fedzo.artifact.contents import Artifact
from fedzo.errors import ArtifactError, ConfigError
from fedzo.journal.genesis_codec import decode_scope, decode_task, encode_scope, encode_task
from fedzo.journal.records import NUMERICS_VERSION, Entry
from fedzo.noise import Distribution
from fedzo.noise.increments import COEFFICIENT_LIMIT
from fedzo.v1 import artifact_pb2 as pb

_DIGESTS = ("base_digest", "manifest_digest", "record_hash", "state_digest")


def encode_artifact(artifact: Artifact) -> bytes:
    """The payload of an artifact file."""
    message = pb.Artifact(
        numerics_version=NUMERICS_VERSION,
        distribution=artifact.distribution.value,
        scope=artifact.scope.kind.value,
        scope_settings=encode_scope(artifact.scope),
        run_seed=artifact.run_seed,
        task=encode_task(artifact.task),
        position=artifact.position,
        seeds=[entry.seed for entry in artifact.entries],
        totals=[entry.coefficient for entry in artifact.entries],
        **{name: getattr(artifact, name) for name in _DIGESTS},
    )
    return message.SerializeToString(deterministic=True)


def decode_artifact(payload: bytes) -> Artifact:
    """Raises ArtifactError for what is no artifact, or is one that this fedzo cannot rebuild exactly."""
    message = pb.Artifact()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise ArtifactError(f"the payload verifies and is no artifact: {error}") from error
    _check_known(message)
    distribution = Distribution(message.distribution)
    try:
        scope = decode_scope(message.scope, message.scope_settings)
    except ConfigError as error:
        raise ArtifactError(f"the artifact cannot be rebuilt: {error}; use the fedzo that wrote it") from error
    return Artifact(
        distribution=distribution,
        scope=scope,
        run_seed=message.run_seed,
        task=decode_task(message.task),
        position=message.position,
        entries=_decode_entries(message, COEFFICIENT_LIMIT[distribution]),
        **{name: getattr(message, name) for name in _DIGESTS},
    )


def _check_known(message: pb.Artifact) -> None:
    if message.numerics_version != NUMERICS_VERSION:
        raise ArtifactError(
            f"the artifact follows numerics version {message.numerics_version}; this fedzo knows version "
            f"{NUMERICS_VERSION}: use the fedzo that wrote it"
        )
    if message.distribution not in tuple(Distribution):
        raise ArtifactError(
            f"the artifact has distribution {message.distribution!r}; this fedzo knows {', '.join(Distribution)}: use "
            "the fedzo that wrote it"
        )
    for name in _DIGESTS:
        if len(getattr(message, name)) != 32:
            raise ArtifactError(f"the artifact's {name} has {len(getattr(message, name))} bytes; expected 32")


def _decode_entries(message: pb.Artifact, limit: int) -> tuple[Entry, ...]:
    if len(message.seeds) != len(message.totals):
        raise ArtifactError(
            f"the artifact has {len(message.seeds)} seeds and {len(message.totals)} totals; expected as many"
        )
    if any(first >= second for first, second in pairwise(message.seeds)):
        raise ArtifactError("the artifact's seeds are not in strictly ascending order; fedzo did not write it")
    entries = tuple(Entry(seed, total) for seed, total in zip(message.seeds, message.totals, strict=True))
    for seed, total in entries:
        if not 0 < abs(total) < limit:
            raise ArtifactError(f"seed {seed} has total {total}; expected one within ±{limit} (units of 2^-40), not 0")
    return entries
