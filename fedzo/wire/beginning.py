"""How a client's copy of the journal begins: with the genesis, or with totals in place of the first records."""

from fedzo.errors import JournalDamageError
from fedzo.journal.codec import decode_record
from fedzo.journal.file import FIRST_PREVIOUS, excerpt_bytes, journal_bytes, record_hash
from fedzo.journal.genesis_codec import decode_genesis, decode_start
from fedzo.v1 import rounds_pb2 as pb
from fedzo.wire.steps import decode_steps


def copy_of(reply: pb.GenesisReply) -> bytes:
    """The file with which a client's copy begins.

    Raises:
        JournalDamageError, JournalFormatError: the genesis does not have the hash that it came with, or the totals are
            not of this run's pool, or the record after them does not follow, or states nothing of the state before it.
    """
    if record_hash(FIRST_PREVIOUS, reply.payload) != reply.record_hash:
        raise JournalDamageError("the genesis does not have the hash that it came with")
    if not reply.start:
        return journal_bytes(reply.payload)
    genesis = decode_genesis(reply.payload)
    start = decode_start(genesis, reply.start)
    ((payload, expected),) = decode_steps(genesis, [reply.first])
    if record_hash(start.record_hash, payload) != expected:
        raise JournalDamageError(
            f"record {start.position + 1}, which came after the totals, does not follow from record "
            f"{start.record_hash.hex()[:16]}…"
        )
    record = decode_record(payload)
    if record.state_digest is None or record.maxima is None:
        raise JournalDamageError(
            f"record {start.position + 1}, which came after the totals, does not state the digest and the maxima of "
            "their state"
        )
    return excerpt_bytes(reply.payload, reply.start, start.record_hash, payload)
