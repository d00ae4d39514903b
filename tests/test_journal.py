"""Reading a journal: what was appended is there, what was torn is said, what was damaged is refused."""

import struct
import zlib
from math import isnan

import numpy as np
import pytest
from blake3 import blake3
from helpers import make_genesis
from hypothesis import given, settings
from journals import (
    GOLDEN,
    LARGEST,
    RECORDS,
    chain,
    made_journal,
    records_of,
    refused_unchanged,
    split_frames,
    write_journal,
)

from fedzo.errors import (
    JournalDamageError,
    JournalFormatError,
)
from fedzo.journal import (
    ClientEvaluation,
    ClientReport,
    Commit,
    Entry,
    Evaluation,
    Journal,
    Record,
    Void,
    read_journal,
)
from fedzo.journal.codec import decode_record, encode_record
from fedzo.journal.file import HEADER, frame_bytes
from fedzo.journal.genesis_codec import encode_genesis
from fedzo.noise import Distribution
from fedzo.v1 import journal_pb2 as pb

# ── what is written is read ─────────────────────────────────────────────────────────────────────────


def test_every_kind_of_record_survives_the_file(tmp_path):
    rules = {"guard_factor": 1.25, "evaluate_every": 7, "pool_size": 9, "warmup_rounds": 3, "momentum_window": 4}
    rules |= {"momentum_decay": 0.75, "curvature_power": 0.1}
    genesis = make_genesis(run_seed=LARGEST, distribution=Distribution.GAUSSIAN, **rules)
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
