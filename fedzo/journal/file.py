"""The journal file: append-only frames, each linked to the one before by its hash (docs/journal-format.md).

    header   16 bytes, `fedzo-journal-1\\n`; of an excerpt `fedzo-excerpt-1\\n`
    frame    u32 payload length · u32 CRC-32 of those four bytes · payload · 32-byte record hash

The record hash is BLAKE3(previous hash ‖ payload); the first previous hash is BLAKE3(header). The first frame is
the genesis. A frame that ends past the end of the file, or whose last sectors are still zeros, was torn by a crash
before anyone was told of it: it is cut off and said. Anything else that does not verify
is damage: an error, nothing skipped.

An excerpt is a client's copy that began late: its second frame is a start, which stands in place of the records up to a
position, and the next frame's previous hash is the one that the start states.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from fedzo.errors import CheckpointError, JournalDamageError, JournalFormatError
from fedzo.journal.codec import decode_record
from fedzo.journal.genesis_codec import decode_genesis, decode_start
from fedzo.journal.records import Genesis, Record, Start
from fedzo.journal.sequences import LateHashes, LateRecords

HEADER = b"fedzo-journal-1\n"
EXCERPT_HEADER = b"fedzo-excerpt-1\n"
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
    start: Start | None = None
    """Of an excerpt: what it has in place of the first records, which then cannot be asked for."""

    @property
    def position(self) -> int:
        """Number of records."""
        return len(self.records)

    @property
    def first(self) -> int:
        """Position from which the records are here."""
        return 0 if self.start is None else self.start.position

    def begun_late(self, start: Start, hashes: Sequence[bytes], records: Sequence[Record]) -> "JournalContents":
        """These contents as an excerpt's.

        Args:
            start: its start.
            hashes: at the start's position and every later one.
            records: after that position.
        """
        first = start.position
        late = LateHashes(self.hashes[0], first, hashes), LateRecords(first, records)
        return JournalContents(self.genesis, *late, self.valid_bytes, self.torn_bytes, start)


def record_hash(previous: bytes, payload: bytes) -> bytes:
    """BLAKE3(previous ‖ payload)."""
    return blake3(previous + payload).digest()


def frame_bytes(previous: bytes, payload: bytes) -> bytes:
    """A payload framed, ready to append."""
    length = struct.pack("<I", len(payload))
    return length + struct.pack("<I", zlib.crc32(length)) + payload + record_hash(previous, payload)


def journal_bytes(genesis: bytes) -> bytes:
    """A file with no records, from a genesis payload."""
    return HEADER + frame_bytes(FIRST_PREVIOUS, genesis)


def excerpt_bytes(genesis: bytes, start: bytes, previous: bytes, first: bytes) -> bytes:
    """A file with one record.

    Args:
        genesis, start, first: payloads; `first` is the record's.
        previous: the record hash that the start states.
    """
    frames = frame_bytes(FIRST_PREVIOUS, genesis), frame_bytes(record_hash(FIRST_PREVIOUS, genesis), start)
    return EXCERPT_HEADER + b"".join(frames) + frame_bytes(previous, first)


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
    (genesis, *records), hashes, ends = zip(*decode_journal(path, data), strict=True)
    contents = JournalContents(genesis, list(hashes), records, valid_bytes=ends[-1], torn_bytes=len(data) - ends[-1])
    if records and isinstance(records[0], Start):
        return contents.begun_late(records[0], hashes[1:], records[1:])
    return contents


def decode_journal(path: Path, data: bytes) -> Iterator[tuple[Genesis | Start | Record, bytes, int]]:
    """Every whole frame's content, the record hash there, and end offset; raises as `read_journal`.

    The genesis comes first, then the start of an excerpt, whose record hash is the one that it states.

    Args:
        path: for messages.
        data: the file's.
    """
    excerpt = _is_excerpt(path, data)
    frames, offset, number = _frames(path, data, starts=excerpt), len(HEADER), 0
    genesis: Genesis | None = None
    while (frame := next(frames, None)) is not None:
        payload, digest, end = frame
        content = _decode(path, payload, number, offset, genesis, starts=excerpt and number == 1)
        if isinstance(content, Genesis):
            genesis = content
        elif isinstance(content, Start):
            excerpt, digest, number = False, content.record_hash, content.position
            frames = _frames(path, data, digest, end, number + 1)
        yield content, digest, end
        offset, number = end, number + 1
    if genesis is None or excerpt:
        missing = "genesis" if genesis is None else "start"
        raise JournalFormatError(f"{path}: holds no {missing}; its creation was interrupted: delete it and start again")


def _decode(
    path: Path, payload: bytes, number: int, offset: int, genesis: Genesis | None, *, starts: bool
) -> Genesis | Start | Record:
    try:
        if genesis is None:
            return decode_genesis(payload)
        return decode_start(genesis, payload) if starts else decode_record(payload)
    except JournalFormatError as error:
        raise JournalFormatError(f"{path}: {error}") from error
    except (JournalDamageError, CheckpointError) as error:
        raise JournalDamageError(_damage(path, number, offset, str(error), start=starts)) from error


def _is_excerpt(path: Path, data: bytes) -> bool:
    """Raises JournalFormatError where the header is that of neither journal nor excerpt."""
    seen = data[: len(HEADER)]
    if seen in (HEADER, EXCERPT_HEADER):
        return seen == EXCERPT_HEADER
    if seen.startswith(HEADER[:14]) and seen.endswith(b"\n"):
        raise JournalFormatError(
            f"{path}: journal format version {seen[14:-1].decode(errors='replace')!r}; this fedzo reads version '1'"
        )
    raise JournalFormatError(
        f"{path}: not a journal, or its first bytes are damaged: begins with {seen!r}, not {HEADER!r}"
    )


def _frames(
    path: Path,
    data: bytes,
    previous: bytes = FIRST_PREVIOUS,
    offset: int = len(HEADER),
    number: int = 0,
    *,
    starts: bool = False,
) -> Iterator[tuple[bytes, bytes, int]]:
    """Whole frames as (payload, record hash, end offset), up to a torn tail.

    Args:
        path: for messages.
        data: the file's.
        previous: record hash before the first of them.
        offset: where it begins.
        number: position that it leads to.
        starts: the second is an excerpt's start.
    """
    while len(data) - offset >= _PREFIX.size:
        start = starts and number == 1
        length, checksum = _PREFIX.unpack_from(data, offset)
        if zlib.crc32(data[offset : offset + 4]) != checksum:
            if _written(data, offset) < offset + _PREFIX.size:
                return
            what = "the length of its frame fails its checksum"
            raise JournalDamageError(_damage(path, number, offset, what, start=start))
        body = offset + _PREFIX.size
        end = body + length + HASH_BYTES
        if end > len(data):
            return
        payload, digest = data[body : body + length], data[body + length : end]
        if record_hash(previous, payload) != digest:
            if end == len(data) and _written(data, offset) < end:
                return
            what = "its hash does not follow from the bytes"
            raise JournalDamageError(_damage(path, number, offset, what, start=start))
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


def _damage(path: Path, number: int, offset: int, what: str, *, start: bool) -> str:
    name = "the genesis" if number == 0 else "the start" if start else f"record {number}"
    return (
        f"{path}: {name} at byte {offset} is damaged: {what}. Nothing after it can be trusted and nothing was "
        "changed; restore the file from a copy"
    )
