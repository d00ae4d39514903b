"""The journal file: append-only frames, each linked to the one before by its hash (docs/journal-format.md).

    header   16 bytes, `fedzo-journal-1\\n`
    frame    u32 payload length · u32 CRC-32 of those four bytes · payload · 32-byte record hash

The record hash is BLAKE3(previous hash ‖ payload); the first previous hash is BLAKE3(header). The first frame is
the genesis. A frame that ends past the end of the file, or whose last sectors are still zeros, was torn by a crash
before anyone was told of it: it is cut off and said. Anything else that does not verify
is damage: an error, nothing skipped.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from fedzo.errors import CheckpointError, JournalDamageError, JournalFormatError
from fedzo.journal.codec import decode_genesis, decode_record
from fedzo.journal.records import Genesis, Record

HEADER = b"fedzo-journal-1\n"
HASH_BYTES = 32
FIRST_PREVIOUS = blake3(HEADER).digest()
"""What the genesis hash is made over, as the hash before it."""
_PREFIX = struct.Struct("<II")
PREFIX_BYTES = _PREFIX.size
_SECTOR = 512
_ZEROS = 8


@dataclass(slots=True)
class JournalContents:
    """A journal: genesis, records and the hash at every position; in lists, or of an open file as `stored` has them."""

    genesis: Genesis
    hashes: Sequence[bytes]
    """hashes[p] is the record hash at position p; hashes[0] is the genesis hash."""
    records: Sequence[Record] = field(default_factory=list)
    valid_bytes: int = 0
    """Length of the file up to the end of the last whole frame."""
    torn_bytes: int = 0
    """Bytes after it that a crash left."""

    @property
    def position(self) -> int:
        """Number of records."""
        return len(self.records)


def record_hash(previous: bytes, payload: bytes) -> bytes:
    """BLAKE3(previous ‖ payload)."""
    return blake3(previous + payload).digest()


def frame_bytes(previous: bytes, payload: bytes) -> bytes:
    """A payload framed, ready to append."""
    length = struct.pack("<I", len(payload))
    return length + struct.pack("<I", zlib.crc32(length)) + payload + record_hash(previous, payload)


def read_journal(path: Path) -> JournalContents:
    """Read and verify a whole journal.

    Raises:
        JournalFormatError: not a journal, or of another version.
        JournalDamageError: a byte does not verify; names the record and its offset.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JournalFormatError(f"{path}: no journal can be read there: {error.strerror}") from error
    contents, hashes, ends = zip(*decode_journal(path, data), strict=True)
    genesis, *records = contents
    return JournalContents(genesis, list(hashes), records, valid_bytes=ends[-1], torn_bytes=len(data) - ends[-1])


def decode_journal(path: Path, data: bytes) -> Iterator[tuple[Genesis | Record, bytes, int]]:
    """Every whole frame's content, record hash and end offset, the genesis first; raises as `read_journal`.

    Args:
        path: for messages.
        data: the file's.
    """
    _check_header(path, data)
    offset = len(HEADER)
    for number, (payload, digest, end) in enumerate(_frames(path, data)):
        try:
            content = decode_record(payload) if number else decode_genesis(payload)
        except JournalFormatError as error:
            raise JournalFormatError(f"{path}: {error}") from error
        except (JournalDamageError, CheckpointError) as error:
            raise JournalDamageError(_damage(path, number, offset, str(error))) from error
        yield content, digest, end
        offset = end
    if offset == len(HEADER):
        raise JournalFormatError(f"{path}: holds no genesis; its creation was interrupted: delete it and start again")


def _check_header(path: Path, data: bytes) -> None:
    seen = data[: len(HEADER)]
    if seen == HEADER:
        return
    if seen.startswith(HEADER[:14]) and seen.endswith(b"\n"):
        raise JournalFormatError(
            f"{path}: journal format version {seen[14:-1].decode(errors='replace')!r}; this fedzo reads version '1'"
        )
    raise JournalFormatError(
        f"{path}: not a journal, or its first bytes are damaged: begins with {seen!r}, not {HEADER!r}"
    )


def _frames(path: Path, data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Whole frames as (payload, record hash, end offset), up to a torn tail."""
    previous, offset, number = FIRST_PREVIOUS, len(HEADER), 0
    while len(data) - offset >= _PREFIX.size:
        length, checksum = _PREFIX.unpack_from(data, offset)
        if zlib.crc32(data[offset : offset + 4]) != checksum:
            if _written(data, offset) < offset + _PREFIX.size:
                return
            raise JournalDamageError(_damage(path, number, offset, "the length of its frame fails its checksum"))
        start = offset + _PREFIX.size
        end = start + length + HASH_BYTES
        if end > len(data):
            return
        payload, digest = data[start : start + length], data[start + length : end]
        if record_hash(previous, payload) != digest:
            if end == len(data) and _written(data, offset) < end:
                return
            raise JournalDamageError(_damage(path, number, offset, "its hash does not follow from the bytes"))
        yield payload, digest, end
        previous, offset, number = digest, end, number + 1


def _written(data: bytes, offset: int) -> int:
    """Where the zeros begin that a crash leaves at the end of a file: a whole number of sectors was never written.

    Fewer than eight zero bytes past a sector's edge are taken for data, so that no single flipped byte looks like this.
    """
    last = len(data.rstrip(b"\0"))
    edge = -(-last // _SECTOR) * _SECTOR
    if last <= offset:
        return offset
    return edge if len(data) - edge >= _ZEROS else len(data)


def _damage(path: Path, number: int, offset: int, what: str) -> str:
    name = f"record {number}" if number else "the genesis"
    return (
        f"{path}: {name} at byte {offset} is damaged: {what}. Nothing after it can be trusted and nothing was "
        "changed; restore the file from a copy"
    )
