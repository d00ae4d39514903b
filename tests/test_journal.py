"""The journal: what was appended is there, what was torn is said, what was damaged is refused."""

import json
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from contextlib import contextmanager
from math import isnan
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from helpers import MANIFEST, Victims, make_genesis, numbered_record, run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedzo.errors import (
    JournalDamageError,
    JournalError,
    JournalFormatError,
    JournalLockedError,
    JournalWriteError,
)
from fedzo.journal import (
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
from fedzo.journal.codec import decode_genesis, decode_record, encode_genesis, encode_record
from fedzo.journal.file import HEADER, frame_bytes
from fedzo.noise import Distribution
from fedzo.v1 import journal_pb2 as pb

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


# ── what is written is read ─────────────────────────────────────────────────────────────────────────


def test_every_kind_of_record_survives_the_file(tmp_path):
    genesis = make_genesis(run_seed=LARGEST, distribution=Distribution.GAUSSIAN, guard_factor=1.25, evaluate_every=7)
    with made_journal(tmp_path / "journal", genesis=genesis) as journal:
        assert journal.position == len(RECORDS)
        written = journal.contents
        found = read_journal(tmp_path / "journal")
    assert found.genesis == genesis
    assert found.records == RECORDS
    assert found.hashes == written.hashes
    assert (found.torn_bytes, found.valid_bytes) == (0, (tmp_path / "journal").stat().st_size)
    assert len(set(found.hashes)) == len(RECORDS) + 1


def test_a_seed_of_zero_and_a_scope_of_zeros_are_values(tmp_path):
    genesis = make_genesis(run_seed=0, learning_rate=0.0, epsilon=0, rounds=0, deadline_s=0.0)
    write_journal(tmp_path / "journal", [], genesis)
    assert read_journal(tmp_path / "journal").genesis == genesis


def test_a_loss_that_is_not_a_number_stays_one():
    record = Record(1, Evaluation((ClientEvaluation(0, 3, float("nan")),)))
    (client,) = decode_record(encode_record(record)).body.clients
    assert isnan(client.loss)


counts = st.integers(0, 2**32 - 1)
entries_of = st.lists(st.builds(Entry, st.integers(0, LARGEST), st.integers(-(2**63), 2**63 - 1)), max_size=5).map(
    tuple
)
losses = st.floats(allow_nan=False)
scalars = st.lists(st.floats(allow_nan=False, width=32), max_size=4).map(tuple)
reports_of = st.lists(st.builds(ClientReport, counts, counts, losses, scalars), max_size=4).map(tuple)
bodies = st.one_of(
    st.builds(Enrolment, counts, st.lists(st.text(max_size=8), max_size=4).map(tuple)),
    st.builds(Commit, entries_of, losses, reports_of),
    st.builds(Void, st.text(max_size=20), st.lists(counts, max_size=4).map(tuple), st.booleans()),
    st.builds(
        Evaluation,
        st.lists(st.builds(ClientEvaluation, counts, st.integers(0, LARGEST), losses), max_size=4).map(tuple),
    ),
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


@settings(max_examples=100, deadline=None)
@given(records_of)
def test_any_record_survives_its_payload(record):
    payload = encode_record(record)
    assert decode_record(payload) == record
    assert encode_record(decode_record(payload)) == payload


def test_the_bytes_are_the_documented_ones(tmp_path):
    """A second reader: header, u32 length, CRC-32 of it, payload, BLAKE3(previous hash ‖ payload)."""
    data = write_journal(tmp_path / "journal")
    hashes = read_journal(tmp_path / "journal").hashes
    assert data[:16] == b"fedzo-journal-1\n"
    previous = blake3(data[:16]).digest()
    for frame, digest in zip(split_frames(data), hashes, strict=True):
        assert struct.unpack("<I", frame[4:8])[0] == zlib.crc32(frame[:4])
        assert blake3(previous + frame[8:-32]).digest() == frame[-32:] == digest
        previous = digest


def test_golden_journal(tmp_path):
    """Byte for byte what earlier versions wrote. A difference is a change of format: it needs a version and a line
    in CHANGELOG.md. The failure prints the lines that golden/journal.txt would then hold.
    """
    data = write_journal(tmp_path / "journal", genesis=make_genesis(run_seed=LARGEST))
    lines = [f"header {data[:16].hex()}"]
    for number, frame in enumerate(split_frames(data)):
        name = type(RECORDS[number - 1].body).__name__.lower() if number else "genesis"
        lines.append(f"{name} {frame.hex()}")
    golden = [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    assert lines == golden, "\n".join(["the actual lines:", *lines])
    (tmp_path / "golden").write_bytes(b"".join(bytes.fromhex(line.split()[1]) for line in golden))
    assert read_journal(tmp_path / "golden").records == RECORDS


def test_twenty_thousand_rounds_take_less_than_4_mb():
    """One direction a round, with who reported and what."""
    draw = np.random.default_rng(0)
    size, previous = len(HEADER) + len(frame_bytes(bytes(32), encode_genesis(make_genesis()))), bytes(32)
    for number in range(1, 20_001):
        scalar = float(np.float32(draw.standard_normal() * 100))
        entry = Entry(int(draw.integers(2**64, dtype=np.uint64)), round(-1e-4 * scalar * 2**40))
        report = ClientReport(int(draw.integers(1000)), 16, 2 + float(draw.random()), (scalar,))
        frame = frame_bytes(previous, encode_record(Record(number, Commit((entry,), 1e-4, (report,)))))
        size += len(frame)
        previous = frame[-32:]
    assert size < 4_000_000


# ── a torn tail ─────────────────────────────────────────────────────────────────────────────────────


def test_a_last_record_torn_anywhere_is_cut_off_and_said(tmp_path):
    path = tmp_path / "journal"
    data = write_journal(path, RECORDS[:4])
    last = len(split_frames(data)[-1])
    whole = len(data) - last
    for kept in range(1, last):
        path.write_bytes(data[: whole + kept])
        found = read_journal(path)
        assert (found.records, found.torn_bytes, found.valid_bytes) == (RECORDS[:3], kept, whole)
        assert path.stat().st_size == whole + kept, "reading changes nothing"
        with Journal.open(path) as journal:
            assert (journal.contents.records, journal.contents.torn_bytes) == (RECORDS[:3], kept)
            assert path.read_bytes() == data[:whole]
        again = read_journal(path)
        assert (again.records, again.torn_bytes) == (RECORDS[:3], 0)


def test_a_record_appended_after_a_cut_makes_the_same_bytes(tmp_path):
    path = tmp_path / "journal"
    data = write_journal(path, RECORDS[:4])
    path.write_bytes(data[:-5])
    with Journal.open(path) as journal:
        journal.append(RECORDS[3])
    assert path.read_bytes() == data


@pytest.mark.parametrize("zeros", [1, 3, 4, 7, 8, 9, 40, 41, 4096, 10_000])
def test_a_tail_of_zeros_is_torn(tmp_path, zeros):
    """A crash may leave the file's new length without the bytes."""
    path = tmp_path / "journal"
    data = write_journal(path)
    path.write_bytes(data + bytes(zeros))
    assert read_journal(path).torn_bytes == zeros
    with Journal.open(path) as journal:
        assert (journal.contents.records, journal.contents.torn_bytes) == (RECORDS, zeros)
    assert path.read_bytes() == data


SECTOR = 512


@pytest.mark.parametrize("kept", [1, 3, 4, 7, 8, 20, -33, -32, -31, -16])
def test_a_last_record_whose_later_sectors_are_zeros_is_torn(tmp_path, kept):
    """A disk writes whole sectors, so a power cut may leave a frame's first part and then zeros from a sector on.

    `kept` bytes of the last frame (counted from its end where negative) lie before the boundary of a sector.
    """
    path = tmp_path / "journal"
    size = len(split_frames(write_journal(tmp_path / "other", [RECORDS[3]]))[1])
    kept %= size
    for filler in range(2 * SECTOR):
        data = chain(
            [encode_genesis(make_genesis())]
            + [encode_record(record) for record in (Record(1, Void("x" * filler, (), diverged=False)), RECORDS[3])]
        )
        boundary = len(data) - size + kept
        if boundary % SECTOR == 0:
            break
    assert boundary % SECTOR == 0
    path.write_bytes(data[:boundary] + bytes(len(data) - boundary))
    found = read_journal(path)
    assert (found.position, found.torn_bytes) == (1, size)
    with Journal.open(path) as journal:
        assert (journal.position, journal.contents.torn_bytes) == (1, size)
    assert path.read_bytes() == data[:-size]


def test_a_file_cut_within_header_or_genesis_is_no_journal(tmp_path):
    path = tmp_path / "journal"
    data = write_journal(path, [])
    for kept in range(len(data)):
        message = refused_unchanged(path, data[:kept], JournalFormatError)
        assert ("no genesis" if kept >= len(HEADER) else "not a journal") in message


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────


def test_any_flipped_bit_or_byte_is_refused_and_nothing_is_changed(tmp_path):
    path = tmp_path / "journal"
    data = write_journal(path, [RECORDS[0], RECORDS[3], RECORDS[13]])
    for offset in range(len(data)):
        for flip in (1 << offset % 8, 0xFF):
            damaged = bytearray(data)
            damaged[offset] ^= flip
            refused_unchanged(path, bytes(damaged))


def test_damage_before_a_torn_tail_is_damage(tmp_path):
    data = bytearray(write_journal(tmp_path / "journal"))
    data[len(split_frames(data)[0]) + 40] ^= 1
    message = refused_unchanged(tmp_path / "journal", bytes(data[:-3]), JournalDamageError)
    assert "record 1 at byte" in message
    assert "restore" in message


def test_an_altered_dropped_repeated_or_swapped_record_breaks_the_chain(tmp_path):
    data = write_journal(tmp_path / "journal", RECORDS[:5])
    genesis, *frames = split_frames(data)
    for record in range(4):
        before, rest = frames[:record], frames[record + 1 :]
        previous = before[-1][-32:] if before else genesis[-32:]
        forged = frame_bytes(previous, encode_record(Record(9, Void("forged", (), diverged=False))))
        swapped = [*before, rest[0], frames[record], *rest[1:]]
        for changed in (
            [*before, forged, *rest],
            [*before, *rest],
            [*before, frames[record], *frames[record:]],
            swapped,
        ):
            if changed == [*before, forged, *rest]:
                guilty = record + 2
            else:
                guilty = record + (2 if changed[record] == frames[record] else 1)
            message = refused_unchanged(tmp_path / "journal", HEADER + genesis + b"".join(changed), JournalDamageError)
            assert f"record {guilty} at byte" in message


def test_another_genesis_under_the_same_records_breaks_the_chain(tmp_path):
    frames = split_frames(write_journal(tmp_path / "journal"))
    other = split_frames(write_journal(tmp_path / "other", genesis=make_genesis(run_seed=1)))
    message = refused_unchanged(tmp_path / "journal", HEADER + b"".join([other[0], *frames[1:]]), JournalDamageError)
    assert "record 1 at byte" in message


def test_another_format_version_is_named(tmp_path):
    data = write_journal(tmp_path / "journal")
    message = refused_unchanged(tmp_path / "journal", b"fedzo-journal-2\n" + data[16:], JournalFormatError)
    assert "'2'" in message
    assert "'1'" in message


@pytest.mark.parametrize("what", ["protocol", "numerics"])
def test_another_protocol_or_numerics_version_is_named(tmp_path, what):
    message = pb.Genesis.FromString(encode_genesis(make_genesis()))
    setattr(message, f"{what}_version", 2)
    said = refused_unchanged(tmp_path / "journal", chain([message.SerializeToString()]), JournalFormatError)
    assert f"{what} version 2" in said


def _unequal_entries() -> bytes:
    entries = pb.Entries(seeds=[1, 2], coefficients=[3])
    return pb.Record(round=1, commit=pb.Commit(entries=entries)).SerializeToString()


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", pb.Record(round=3).SerializeToString(), _unequal_entries(), b"\x22\x03\x12\x01\xff"],
    ids=["empty", "no protobuf", "no body", "a coefficient short", "a name that is no text"],
)
def test_a_payload_that_verifies_but_is_no_record_is_damage(tmp_path, payload):
    data = chain([encode_genesis(make_genesis()), payload])
    message = refused_unchanged(tmp_path / "journal", data, JournalDamageError)
    assert "record 1 at byte" in message


@pytest.mark.parametrize("field", ["distribution", "manifest"])
def test_a_genesis_of_things_unknown_is_refused_by_name(tmp_path, field):
    """Another fedzo may know a distribution that this one does not; a manifest must be sorted."""
    message = pb.Genesis.FromString(encode_genesis(make_genesis()))
    if field == "distribution":
        message.distribution = "cauchy"
    else:
        message.manifest.reverse()
    said = refused_unchanged(tmp_path / "journal", chain([message.SerializeToString()]))
    assert "cauchy" in said or "sorted" in said


@pytest.mark.parametrize("content", [b"", b"\x00", b"fedzo", bytes(16), bytes(5000), b"{}\n", HEADER[::-1]])
def test_what_is_no_journal_is_refused(tmp_path, content):
    assert str(tmp_path / "journal") in refused_unchanged(tmp_path / "journal", content, JournalFormatError)


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(JournalFormatError, match=str(path)):
            read_journal(path)
        with pytest.raises(JournalFormatError, match=str(path)):
            Journal.open(path)


# ── creation and the lock ───────────────────────────────────────────────────────────────────────────


def test_creating_over_an_existing_journal_is_refused(tmp_path):
    data = write_journal(tmp_path / "journal")
    with pytest.raises(JournalError, match="exists there already"):
        Journal.create(tmp_path / "journal", make_genesis(run_seed=5))
    assert (tmp_path / "journal").read_bytes() == data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal"]


def test_what_an_interrupted_creation_left_is_no_obstacle(tmp_path):
    (tmp_path / "journal.partial").write_bytes(b"fedzo-jour")
    write_journal(tmp_path / "journal", RECORDS[:2])
    assert read_journal(tmp_path / "journal").position == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal"]


def test_a_creation_killed_before_it_removed_its_partial_file_leaves_the_journal_safe(tmp_path):
    """The partial file is then a second name of the journal: to write to it would be to write to the journal."""
    data = write_journal(tmp_path / "journal")
    (tmp_path / "journal.partial").hardlink_to(tmp_path / "journal")
    with pytest.raises(JournalError, match="exists there already"):
        Journal.create(tmp_path / "journal", make_genesis(run_seed=5))
    assert (tmp_path / "journal").read_bytes() == data


def test_a_journal_that_cannot_be_created_leaves_nothing(tmp_path):
    with pytest.raises(JournalWriteError, match="cannot be created"):
        Journal.create(tmp_path / "no such directory" / "journal", make_genesis())
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys
from pathlib import Path
from fedzo.journal import Journal
journal = Journal.open(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_locked_out_until_the_first_is_gone(tmp_path):
    path = tmp_path / "journal"
    write_journal(path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(JournalLockedError, match="another process"):
            Journal.open(path)
        assert read_journal(path).records == RECORDS, "readers need no lock"
        holder.kill()
    with Journal.open(path) as journal:
        assert journal.position == len(RECORDS)
        with pytest.raises(AssertionError, match="JournalLockedError"):
            run_python(HOLDER, path)
    journal.close()
    assert run_python(HOLDER, path) == "open\n"


# ── a full disk ─────────────────────────────────────────────────────────────────────────────────────

FULL = """
import json, resource, signal, sys
from pathlib import Path
from helpers import numbered_record
from fedzo.errors import JournalWriteError
from fedzo.journal import Journal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, refused = Path(sys.argv[1]), []
for room in json.loads(sys.argv[2]):
    journal, before = Journal.open(path), path.read_bytes()
    position, head = journal.position, journal.record_hash
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, resource.RLIM_INFINITY))
    said = []
    for _ in range(2):
        try:
            journal.append(numbered_record(position + 1))
        except JournalWriteError as error:
            said.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    same = path.read_bytes() == before and (journal.position, journal.record_hash) == (position, head)
    refused.append([room, same, said])
    journal.close()
    with Journal.open(path) as journal:
        assert (journal.position, journal.contents.torn_bytes) == (position, 0)
        journal.append(numbered_record(position + 1))
print(json.dumps(refused))
"""


def test_a_disk_that_refuses_part_of_an_append_leaves_the_journal_as_it_was(tmp_path):
    path = tmp_path / "journal"
    write_journal(path, [numbered_record(1)])
    rooms = [0, 1, 4, 7, 8, 9, 1000, 60, 70, 90]
    refused = json.loads(run_python(FULL, path, json.dumps(rooms)))
    assert [room for room, _, _ in refused] == rooms
    for position, (room, same, said) in enumerate(refused, start=2):
        assert room < len(split_frames(path.read_bytes())[position]), "the append did not fail part way"
        assert same
        assert len(said) == 2
        assert f"record {position} could not be written (File too large)" in said[0]
        assert "open the journal again" in said[1]
    assert read_journal(path).records == [numbered_record(n) for n in range(1, len(rooms) + 2)]


CREATE_FULL = """
import resource, signal, sys
from pathlib import Path
from helpers import make_genesis
from fedzo.errors import JournalError
from fedzo.journal import Journal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    Journal.create(Path(sys.argv[1]), make_genesis(run_seed=5))
except JournalError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(type(error).__name__)
"""


@pytest.mark.parametrize("limit", [0, 20, 10_000])
def test_creating_over_an_existing_journal_on_a_full_disk_leaves_it_be(tmp_path, limit):
    data = write_journal(tmp_path / "journal")
    assert run_python(CREATE_FULL, tmp_path / "journal", str(limit)) in ("JournalError\n", "JournalWriteError\n")
    assert (tmp_path / "journal").exists(), "the run's truth was deleted"
    assert (tmp_path / "journal").read_bytes() == data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal"]


@pytest.mark.parametrize("limit", [0, 20])
def test_creating_on_a_full_disk_leaves_nothing(tmp_path, limit):
    assert run_python(CREATE_FULL, tmp_path / "journal", str(limit)) == "JournalWriteError\n"
    assert list(tmp_path.iterdir()) == []


@contextmanager
def small_disk(path: Path, size: str):
    """A file system of that size."""
    path.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("no small file system can be mounted here (it takes root)")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_file_system_loses_nothing(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as disk:
        path, ballast = disk / "journal", disk / "ballast"
        ballast.write_bytes(bytes(200_000))
        with Journal.create(path, make_genesis()) as journal:
            for number in range(1, 16):
                journal.append(numbered_record(number) if number % 8 else Record(number, End()))
            before = path.read_bytes()
            with pytest.raises(JournalWriteError, match="No space left on device"):
                journal.append(numbered_record(16))
            assert path.read_bytes() == before
        with ballast.open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):  # noqa: PT012
            while True:
                file.write(bytes(4096))
        with pytest.raises(JournalWriteError, match="No space left on device; nothing was left there"):
            Journal.create(disk / "second", make_genesis())
        assert sorted(p.name for p in disk.iterdir()) == ["ballast", "journal"]
        ballast.unlink()
        with Journal.open(path) as journal:
            assert (journal.position, journal.contents.torn_bytes) == (15, 0)
            journal.append(numbered_record(17))
        assert path.read_bytes().startswith(before)
        assert read_journal(path).records[15:] == [numbered_record(17)]


# ── kill -9 ─────────────────────────────────────────────────────────────────────────────────────────

WRITER = """
from pathlib import Path
from helpers import numbered_record
from fedzo.journal import Journal

def work(path, say):
    journal = Journal.open(Path(path))
    say(journal.position)
    while True:
        journal.append(numbered_record(journal.position + 1))
        say(journal.position)
"""


def test_a_writer_killed_at_any_moment_loses_nothing_that_it_announced(tmp_path):
    path = tmp_path / "journal"
    write_journal(path, [])
    moments = random.Random(0)
    announced = [0]
    with Victims(WRITER) as writers:
        for _ in range(10):
            said = [int(line) for line in writers.run_and_kill(path, moments.uniform(0.0, 0.15))]
            found = read_journal(path)
            assert said[0] >= announced[-1]
            assert said == list(range(said[0], said[-1] + 1))
            assert found.position >= said[-1]
            announced = said
    assert announced[-1] > 10, "hardly anything was written: the test shows nothing"
    assert found.records == [numbered_record(n) for n in range(1, found.position + 1)]
    with Journal.open(path) as journal:
        journal.append(numbered_record(journal.position + 1))
        assert journal.position == found.position + 1


# ── any history ─────────────────────────────────────────────────────────────────────────────────────


class JournalMachine(RuleBasedStateMachine):
    """A journal against a list of records, through appends, restarts, power cuts and readers."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self.path = Path(self._directory.name) / "journal"
        self.model: list[Record] = []
        self.sizes: list[int] = []
        self.torn = 0
        self.journal: Journal | None = Journal.create(self.path, make_genesis())
        self.hashes = [self.journal.record_hash]

    @precondition(lambda self: self.journal is not None)
    @rule(record=records_of)
    def append(self, record):
        before = self.path.stat().st_size
        self.hashes.append(self.journal.append(record))
        self.model.append(record)
        self.sizes.append(self.path.stat().st_size - before)

    @precondition(lambda self: self.journal is not None)
    @rule()
    def close(self):
        self.journal.close()
        self.journal = None

    @precondition(lambda self: self.journal is None)
    @rule()
    def open(self):
        self.journal = Journal.open(self.path)
        assert self.journal.contents.torn_bytes == self.torn
        self.torn = 0
        assert self.journal.position == len(self.model)

    @precondition(lambda self: self.journal is None and self.model and not self.torn)
    @rule(data=st.data())
    def cut(self, data):
        size = self.sizes.pop()
        self.torn = data.draw(st.integers(1, size - 1))
        with self.path.open("r+b") as file:
            file.truncate(self.path.stat().st_size - size + self.torn)
        self.model.pop()
        self.hashes.pop()

    @precondition(lambda self: self.journal is None and not self.torn)
    @rule(zeros=st.integers(1, 200))
    def extend_by_zeros(self, zeros):
        with self.path.open("ab") as file:
            file.write(bytes(zeros))
        self.torn = zeros

    @invariant()
    def reads_as_the_model(self):
        found = read_journal(self.path)
        assert found.records == self.model
        assert found.hashes == self.hashes
        assert found.torn_bytes == self.torn
        assert found.valid_bytes + self.torn == self.path.stat().st_size
        if self.journal is not None:
            assert self.journal.contents.records == self.model
            assert self.journal.record_hash == self.hashes[-1]

    def teardown(self):
        if self.journal is not None:
            self.journal.close()
        self._directory.cleanup()


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_the_manifest_comes_back_whole(tmp_path):
    write_journal(tmp_path / "journal", [])
    found = read_journal(tmp_path / "journal").genesis.manifest
    assert found == MANIFEST
    assert found.digest() == MANIFEST.digest()
    assert decode_genesis(encode_genesis(make_genesis())) == make_genesis()
