"""Writing a journal: one process at a time, each record durable before anyone is told of it.

Guaranteed: a record is durable before `append` returns. Not guaranteed: that its last writer knew.
"""

import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from fedzo.errors import (
    JournalDamageError,
    JournalError,
    JournalFormatError,
    JournalLockedError,
    JournalWriteError,
)
from fedzo.journal.codec import decode_record, encode_record
from fedzo.journal.file import HASH_BYTES, JournalContents, decode_journal, frame_bytes, journal_bytes
from fedzo.journal.genesis_codec import encode_genesis
from fedzo.journal.records import Genesis, Record, Start
from fedzo.journal.stored import StoredHashes, StoredRecords


class Journal:
    """A journal open for writing by this process alone.

    Use `Journal.create` or `Journal.open`; close it, or use it as a context manager.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._hashes: StoredHashes
        self._records: StoredRecords
        self.contents = self._read()
        self._broken = False

    @classmethod
    def create(cls, path: Path, genesis: Genesis) -> Self:
        """Start a journal; it appears under its name only when the genesis is durable.

        Raises:
            JournalError: one exists there already.
            JournalWriteError: the disk refused it; what was there before is as it was.
        """
        return cls.create_copy(path, encode_genesis(genesis))

    @classmethod
    def create_copy(cls, path: Path, payload: bytes) -> Self:
        """`create`, from another journal's first payload as it was written."""
        return cls.create_whole(path, journal_bytes(payload))

    @classmethod
    def create_whole(cls, path: Path, content: bytes, *, replace: bool = False) -> Self:
        """`create`, from a whole file's bytes; `replace` puts it where another is, which stays if this fails."""
        partial, linked = path.with_name(path.name + ".partial"), False
        try:
            partial.unlink(missing_ok=True)  # a crash may have left it as a second name of a journal
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                partial.replace(path)
            else:
                os.link(partial, path)  # unlike a rename it never replaces what is there
                linked = True
            fsync_directory(path.parent)
        except FileExistsError:
            raise JournalError(f"{path}: a journal exists there already; resume it") from None
        except OSError as error:
            if linked:
                path.unlink()
            left = "what was there is as it was" if replace else "nothing was left there"
            raise JournalWriteError(f"{path}: cannot be created: {error.strerror}; {left}") from error
        finally:
            partial.unlink(missing_ok=True)
        return cls.open(path, excerpts=True)

    @classmethod
    def open(cls, path: Path, *, excerpts: bool = False) -> Self:
        """Lock, read and verify; cut a torn tail off (`contents.torn_bytes` says how much was).

        Args:
            path: of the file.
            excerpts: it may be an excerpt, which nothing but a client can go on from.

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
            journal = cls(path, descriptor)
            if journal.contents.start is not None and not excerpts:
                raise JournalFormatError(
                    f"{path}: a client's excerpt, which begins with the totals at position {journal.contents.first}; "
                    "expected a whole journal, as the run's server has it"
                )
            if journal.contents.torn_bytes:
                os.ftruncate(descriptor, journal.contents.valid_bytes)
                os.fsync(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise JournalLockedError(f"{path}: another process is writing to it; wait for it or stop it") from None
        except BaseException:
            os.close(descriptor)
            raise
        return journal

    def _read(self) -> JournalContents:
        """Verify every record, and note where it lies."""
        with open(self._descriptor, "rb", closefd=False) as file:
            data = file.read()
        frames = decode_journal(self.path, data)
        genesis, digest, end = next(frames)
        assert isinstance(genesis, Genesis)
        self._begin(digest, end)
        contents, start = JournalContents(genesis, self._hashes, self._records), None
        for content, digest, end in frames:
            if isinstance(content, Start):
                start = content
                self._begin(digest, end)
            elif isinstance(content, Record):
                self._records.append(content, end)
                self._hashes.append(digest)
        contents.valid_bytes, contents.torn_bytes = end, len(data) - end
        return contents if start is None else contents.begun_late(start, self._hashes, self._records)

    def _begin(self, digest: bytes, end: int) -> None:
        """Records follow from a hash, behind the frame that ends there."""
        self._hashes = StoredHashes()
        self._hashes.append(digest)
        self._records = StoredRecords(self.path, self._descriptor, self._hashes, end)

    @property
    def position(self) -> int:
        """Number of records."""
        return self.contents.position

    @property
    def record_hash(self) -> bytes:
        """Hash at the current position."""
        return self.contents.hashes[-1]

    def payload(self, position: int) -> bytes:
        """The payload that led to a position, as written; the genesis at 0. Raises as `StoredRecords.payload`."""
        return self._records.payload(position)

    def bytes_of(self, position: int) -> int:
        """Size of the records up to a position, as the file has them."""
        return self._records.end(position) - self._records.end(0)

    def append(self, record: Record) -> bytes:
        """Append one record durably and return its hash.

        Raises:
            JournalWriteError: the disk refused; the file is at its former length.
        """
        self._write([frame_bytes(self.record_hash, encode_record(record))], [record])
        return self.record_hash

    def append_copies(self, steps: Sequence[tuple[bytes, bytes]]) -> list[Record]:
        """Append records of the journal that this one is a copy of, durably, and return them.

        Args:
            steps: payload as written there, and record hash, of consecutive records.

        Raises:
            JournalDamageError: a hash does not follow from what is here and the payload; nothing was appended.
            JournalWriteError: as `append`.
        """
        frames, records = chain_frames(str(self.path), self.contents, steps)
        self._write(frames, records)
        return records

    def _write(self, frames: list[bytes], records: list[Record]) -> None:
        if self._broken:
            raise JournalWriteError(
                f"{self.path}: an earlier write failed and its fate is unknown; open the journal again"
            )
        data = b"".join(frames)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self.contents.valid_bytes + written)
            os.fsync(self._descriptor)
        except OSError as error:
            self._broken = True
            with suppress(OSError):
                os.ftruncate(self._descriptor, self.contents.valid_bytes)
            raise JournalWriteError(
                f"{self.path}: record {self.position + 1} could not be written ({error.strerror}); the file is as it "
                "was before: free space and resume"
            ) from error
        for frame, record in zip(frames, records, strict=True):
            self.contents.valid_bytes += len(frame)
            self._records.append(record, self.contents.valid_bytes)
            self._hashes.append(frame[-HASH_BYTES:])

    def close(self) -> None:
        """Release the lock; `contents` cannot be read afterwards. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = self._records.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def chain_frames(
    where: str, contents: JournalContents, steps: Sequence[tuple[bytes, bytes]]
) -> tuple[list[bytes], list[Record]]:
    """Frames and records that go on from a journal's end.

    Args:
        where: the journal, for messages.
        contents: of it.
        steps: payload and record hash of consecutive records.

    Raises:
        JournalDamageError: a hash does not follow from what is there and the payload.
    """
    previous, frames, records = contents.hashes[-1], [], []
    for number, (payload, expected) in enumerate(steps, start=contents.position + 1):
        frames.append(frame_bytes(previous, payload))
        previous = frames[-1][-HASH_BYTES:]
        if previous != expected:
            raise JournalDamageError(
                f"record {number} has hash {expected.hex()[:16]}…, but {previous.hex()[:16]}… follows from it and "
                f"the record before in {where}; nothing was appended"
            )
        records.append(decode_record(payload))
    return frames, records


def fsync_directory(directory: Path) -> None:
    """Make a rename in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
