"""The journal file: append-only frames, each linked to the one before by its hash (docs/journal-format.md).

    header   16 bytes, `fedzo-journal-1\\n`
    frame    u32 payload length · u32 CRC-32 of those four bytes · payload · 32-byte record hash

The record hash is BLAKE3(previous hash ‖ payload); the first previous hash is BLAKE3(header). The first frame is
the genesis. A frame that ends past the end of the file, or whose last sectors are still zeros, was torn by a crash
before anyone was told of it: it is cut off and said. Anything else that does not verify
is damage: an error, nothing skipped.
Guaranteed: a record is durable before `append` returns. Not guaranteed: that its last writer knew.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from fedzo.errors import (
    CheckpointError,
    JournalDamageError,
    JournalError,
    JournalFormatError,
    JournalLockedError,
    JournalWriteError,
)
from fedzo.journal.codec import decode_genesis, decode_record, encode_genesis, encode_record
from fedzo.journal.records import Genesis, Record

HEADER = b"fedzo-journal-1\n"
HASH_BYTES = 32
_PREFIX = struct.Struct("<II")
_SECTOR = 512
_ZEROS = 8


@dataclass(slots=True)
class JournalContents:
    """A journal as read: genesis, records and the hash at every position."""

    genesis: Genesis
    hashes: list[bytes]
    """hashes[p] is the record hash at position p; hashes[0] is the genesis hash."""
    records: list[Record] = field(default_factory=list)
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
    return _parse(path, data)


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def _parse(path: Path, data: bytes) -> JournalContents:
    _check_header(path, data)
    contents: JournalContents | None = None
    offset = len(HEADER)
    for number, (payload, digest, end) in enumerate(_frames(path, data)):
        try:
            if contents is None:
                contents = JournalContents(genesis=decode_genesis(payload), hashes=[digest])
            else:
                contents.records.append(decode_record(payload))
                contents.hashes.append(digest)
        except JournalFormatError as error:
            raise JournalFormatError(f"{path}: {error}") from error
        except (JournalDamageError, CheckpointError) as error:
            raise JournalDamageError(_damage(path, number, offset, str(error))) from error
        offset = end
    if contents is None:
        raise JournalFormatError(f"{path}: holds no genesis; its creation was interrupted: delete it and start again")
    contents.valid_bytes, contents.torn_bytes = offset, len(data) - offset
    return contents


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
    previous, offset, number = blake3(HEADER).digest(), len(HEADER), 0
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


class Journal:
    """A journal open for writing by this process alone.

    Use `Journal.create` or `Journal.open`; close it, or use it as a context manager.
    """

    def __init__(self, path: Path, descriptor: int, contents: JournalContents) -> None:
        self.path = path
        self.contents = contents
        self._descriptor = descriptor
        self._broken = False

    @classmethod
    def create(cls, path: Path, genesis: Genesis) -> Self:
        """Start a journal; it appears under its name only when the genesis is durable.

        Raises:
            JournalError: one exists there already.
            JournalWriteError: the disk refused it; what was there before is as it was.
        """
        partial, linked = path.with_name(path.name + ".partial"), False
        try:
            partial.unlink(missing_ok=True)  # a crash may have left it as a second name of a journal
            with partial.open("xb") as file:
                file.write(HEADER + frame_bytes(blake3(HEADER).digest(), encode_genesis(genesis)))
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)  # unlike a rename it never replaces what is there
            linked = True
            fsync_directory(path.parent)
        except FileExistsError:
            raise JournalError(f"{path}: a journal exists there already; resume it") from None
        except OSError as error:
            if linked:
                path.unlink()
            raise JournalWriteError(f"{path}: cannot be created: {error.strerror}; nothing was left there") from error
        finally:
            partial.unlink(missing_ok=True)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Lock, read and verify; cut a torn tail off (`contents.torn_bytes` says how much was).

        Raises:
            JournalLockedError: another process has it open.
            JournalFormatError, JournalDamageError: as `read_journal`.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise JournalFormatError(f"{path}: no journal can be opened there: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            contents = _parse(path, _read_all(descriptor))
            if contents.torn_bytes:
                os.ftruncate(descriptor, contents.valid_bytes)
                os.fsync(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise JournalLockedError(f"{path}: another process is writing to it; wait for it or stop it") from None
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, contents)

    @property
    def position(self) -> int:
        """Number of records."""
        return self.contents.position

    @property
    def record_hash(self) -> bytes:
        """Hash at the current position."""
        return self.contents.hashes[-1]

    def append(self, record: Record) -> bytes:
        """Append one record durably and return its hash.

        Raises:
            JournalWriteError: the disk refused; the file is at its former length.
        """
        if self._broken:
            raise JournalWriteError(
                f"{self.path}: an earlier write failed and its fate is unknown; open the journal again"
            )
        frame = frame_bytes(self.record_hash, encode_record(record))
        try:
            written = 0
            while written < len(frame):
                written += os.pwrite(self._descriptor, frame[written:], self.contents.valid_bytes + written)
            os.fsync(self._descriptor)
        except OSError as error:
            self._broken = True
            with suppress(OSError):
                os.ftruncate(self._descriptor, self.contents.valid_bytes)
            raise JournalWriteError(
                f"{self.path}: record {self.position + 1} could not be written ({error.strerror}); the file is as it "
                "was before: free space and resume"
            ) from error
        self.contents.records.append(record)
        self.contents.hashes.append(frame[-HASH_BYTES:])
        self.contents.valid_bytes += len(frame)
        return self.record_hash

    def close(self) -> None:
        """Release the lock; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fsync_directory(directory: Path) -> None:
    """Make a rename in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
