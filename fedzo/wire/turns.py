"""Turns: a session's messages where there is no stream, one message each way (docs/protocol.md)."""

from google.protobuf.message import DecodeError

from fedzo.errors import JournalDamageError, ProtocolError
from fedzo.journal.file import FIRST_PREVIOUS, JournalContents, record_hash
from fedzo.journal.genesis_codec import decode_genesis
from fedzo.v1 import rounds_pb2 as rounds
from fedzo.v1 import turns_pb2 as pb

TURN_RECORD, TURN_FIELD = "fedzo", "turn"
"""Where a turn, or its answer, lies in a message of Flower's: one field, since each costs."""


def parse_turn(data: bytes) -> pb.Turn:
    """Raises ProtocolError for bytes that are no Turn."""
    turn = pb.Turn()
    try:
        turn.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError(f"{len(data)} bytes that are no Turn of protocol version 1: {error}") from error
    return turn


def known_steps(turn: pb.Turn, position: int, record_hash: bytes) -> int | None:
    """How many of a turn's steps a replica has already; None where it cannot go on from this turn.

    Args:
        turn: as received.
        position: of the replica.
        record_hash: there.
    """
    known, steps = position - turn.position, turn.news.steps
    if not 0 <= known <= len(steps) or (known and steps[known - 1].record_hash != record_hash):
        return None
    return known


def genesis_contents(genesis_hash: bytes, genesis: rounds.GenesisReply) -> JournalContents:
    """A journal that holds nothing but its genesis, as a turn brought it.

    Raises:
        JournalDamageError: it does not have the hash that it came with.
    """
    if record_hash(FIRST_PREVIOUS, genesis.payload) != genesis_hash:
        raise JournalDamageError("the genesis that came with a message does not have the hash that it came with")
    return JournalContents(decode_genesis(genesis.payload), [genesis_hash])
