"""A journal's records where they lie: memory has each one's hash and where its frame ends, the file the rest.

A record is decoded when it is asked for, and its hash checked once more; the latest few are kept. So a process can hold
a journal of any length.
"""

import os
from array import array
from pathlib import Path

from fedzo.errors import JournalDamageError, JournalError
from fedzo.journal.codec import decode_record
from fedzo.journal.file import FIRST_PREVIOUS, HASH_BYTES, HEADER, PREFIX_BYTES, record_hash
from fedzo.journal.records import Record
from fedzo.journal.sequences import Made

RECENT = 8
"""Records that are kept as they are, which is more than a round looks back."""


class StoredHashes(Made[bytes]):
    """The record hash at every position, packed."""

    def __init__(self) -> None:
        self._packed = bytearray()

    def __len__(self) -> int:
        return len(self._packed) // HASH_BYTES

    def append(self, digest: bytes) -> None:
        """That of the next position."""
        self._packed += digest

    def _item(self, index: int) -> bytes:
        return bytes(self._packed[HASH_BYTES * index : HASH_BYTES * (index + 1)])


class StoredRecords(Made[Record]):
    """The records of a journal's file.

    Args:
        path: for messages.
        descriptor: of the file, open for reading; -1 once it is closed.
        hashes: at every position; a record's is appended after the record.
        genesis_end: offset at which the first frame ends.
    """

    def __init__(self, path: Path, descriptor: int, hashes: StoredHashes, genesis_end: int) -> None:
        self.descriptor = descriptor
        self._path = path
        self._hashes = hashes
        self._ends = array("Q", [len(HEADER), genesis_end])
        """Where the frame ends that leads to each position, after the header's own end."""
        self._recent: list[tuple[int, Record] | None] = [None] * RECENT

    def __len__(self) -> int:
        return len(self._ends) - 2

    def append(self, record: Record, end: int) -> None:
        """The next record, whose frame ends at an offset of the file."""
        self._recent[len(self) % RECENT] = (len(self), record)
        self._ends.append(end)

    def end(self, position: int) -> int:
        """Offset at which the frame ends that led to a position."""
        return self._ends[position + 1]

    def payload(self, position: int) -> bytes:
        """The payload that led to a position, as written; the genesis at 0.

        Raises:
            JournalDamageError: it is no longer what was written.
            JournalError: the file cannot be read any more.
        """
        offset, end = self._ends[position], self._ends[position + 1]
        length = end - offset - PREFIX_BYTES - HASH_BYTES
        try:
            payload = os.pread(self.descriptor, length, offset + PREFIX_BYTES)
        except OSError as error:
            raise JournalError(f"{self._path}: record {position} cannot be read: {error.strerror}") from error
        previous = self._hashes[position - 1] if position else FIRST_PREVIOUS
        if record_hash(previous, payload) != self._hashes[position]:
            raise JournalDamageError(
                f"{self._path}: record {position} at byte {offset} is damaged: its bytes have changed since the "
                "journal was opened. Restore the file from a copy"
            )
        return payload

    def _item(self, index: int) -> Record:
        kept = self._recent[index % RECENT]  # one read, as another thread may append
        if kept is not None and kept[0] == index:
            return kept[1]
        record = decode_record(self.payload(index + 1))
        self._recent[index % RECENT] = (index, record)
        return record
