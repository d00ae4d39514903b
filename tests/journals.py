"""Journals to test with: one record of every kind, frames taken apart and chained again."""

import struct
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3
from helpers import make_genesis
from hypothesis import strategies as st

from fedzo.errors import (
    JournalDamageError,
    JournalFormatError,
)
from fedzo.journal import (
    Calibration,
    ClientEvaluation,
    ClientReport,
    Commit,
    End,
    Enrolment,
    Entry,
    Evaluation,
    Genesis,
    Journal,
    Record,
    Rollback,
    Void,
    read_journal,
)
from fedzo.journal.file import HEADER, frame_bytes

GOLDEN = Path(__file__).parent / "golden" / "journal.txt"
LARGEST = 2**64 - 1
DIGEST = bytes(range(100, 132))

# One of every kind, and every optional or repeated field once full, once absent, once zero.
RECORDS = [
    Record(0, Enrolment(0, ("anna", "bertl", "übung"))),
    Record(0, Enrolment(0, ())),
    Record(3, Enrolment(2**32 - 1, ("",)), state_digest=DIGEST),
    Record(
        1,
        Commit(
            (Entry(0, -(2**62)), Entry(LARGEST, 2**62), Entry(17, 0), Entry(17, -1)),
            1e-4,
            (ClientReport(0, 1, 0.0, (0.0, -1.5)), ClientReport(2**32 - 1, 2**32 - 1, -2.25, (2.0**20,))),
        ),
        state_digest=DIGEST,
        maxima=(0, 2**30),
    ),
    Record(2, Commit((), 0.0, ())),
    Record(2, Commit((Entry(0, 0),), 0.0, (ClientReport(0, 0, 0.0, ()),)), maxima=(0, 0)),
    Record(3, Void("below quorum", (0, 4, 2), diverged=True), state_digest=DIGEST, maxima=(7, 0)),
    Record(4, Void("", (), diverged=False)),
    Record(4, Evaluation((ClientEvaluation(0, 0, 0.0), ClientEvaluation(1, LARGEST, float("inf"))))),
    Record(0, Evaluation(())),
    Record(4, Rollback(LARGEST, (Entry(LARGEST, -(2**62)), Entry(0, 1)), 0.5, "the loss is nan"), state_digest=DIGEST),
    Record(0, Rollback(0, (), 0.0, "")),
    Record(2**32 - 1, End(), state_digest=DIGEST),
    Record(0, End()),
    Record(0, Calibration(1e-3, (ClientReport(0, 16, 4.5, (9.0, -1.5, 2.0**21, -0.0)), ClientReport(1, 1, 0.0, ())))),
    Record(2**32 - 1, Calibration(0.0, ()), state_digest=DIGEST),
]


@contextmanager
def made_journal(path: Path, records=RECORDS, genesis: Genesis | None = None):
    """A new journal with these records, open."""
    with Journal.create(path, genesis or make_genesis()) as journal:
        for record in records:
            journal.append(record)
        yield journal


def write_journal(path: Path, records=RECORDS, genesis: Genesis | None = None) -> bytes:
    """A closed journal's bytes."""
    with made_journal(path, records, genesis):
        pass
    return path.read_bytes()


def split_frames(data: bytes) -> list[bytes]:
    """The frames of a whole journal, the genesis first, by the format page alone."""
    frames, offset = [], 16
    while offset < len(data):
        end = offset + 8 + struct.unpack_from("<I", data, offset)[0] + 32
        frames.append(data[offset:end])
        offset = end
    assert offset == len(data)
    return frames


def payloads_of(path: Path) -> list[bytes]:
    """What a whole journal holds as it was written, the genesis first."""
    return [frame[8:-32] for frame in split_frames(path.read_bytes())]


def chain(payloads: list[bytes]) -> bytes:
    """A journal of these payloads whose checksums and hashes all hold."""
    data, previous = HEADER, blake3(HEADER).digest()
    for payload in payloads:
        data += frame_bytes(previous, payload)
        previous = data[-32:]
    return data


def refused_unchanged(path: Path, data: bytes, expected=(JournalFormatError, JournalDamageError)) -> str:
    """Reading and opening both refuse these bytes, and leave them as they are; the message."""
    path.write_bytes(data)
    with pytest.raises(expected) as found:
        read_journal(path)
    with pytest.raises(expected):
        Journal.open(path)
    assert path.read_bytes() == data
    return str(found.value)


counts = st.integers(0, 2**32 - 1)
entries_of = st.lists(st.builds(Entry, st.integers(0, LARGEST), st.integers(-(2**63), 2**63 - 1)), max_size=5).map(
    tuple
)
losses = st.floats(allow_nan=False)
scalars = st.lists(st.floats(allow_nan=False, width=32), max_size=4).map(tuple)
reports_of = st.lists(st.builds(ClientReport, counts, counts, losses, scalars, counts, counts), max_size=4).map(tuple)
bodies = st.one_of(
    st.builds(Enrolment, counts, st.lists(st.text(max_size=8), max_size=4).map(tuple)),
    st.builds(Commit, entries_of, losses, reports_of),
    st.builds(Void, st.text(max_size=20), st.lists(counts, max_size=4).map(tuple), st.booleans()),
    st.builds(
        Evaluation,
        st.lists(st.builds(ClientEvaluation, counts, st.integers(0, LARGEST), losses), max_size=4).map(tuple),
    ),
    st.builds(Calibration, losses, reports_of),
    st.builds(Rollback, st.integers(0, LARGEST), entries_of, losses, st.text(max_size=20)),
    st.just(End()),
)
records_of = st.builds(
    Record,
    counts,
    bodies,
    st.none() | st.binary(min_size=32, max_size=32),
    st.none() | st.lists(counts, min_size=1, max_size=4).map(tuple),
)
