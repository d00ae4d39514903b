"""The state file: what loads is the state that was saved, to the bit; everything else is refused."""

import json
import random
from itertools import chain
from math import prod
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from helpers import MANIFEST, Victims, big_replica, big_replica_hash, run_python

from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.errors import StateFileError
from fedzo.journal import Commit, Entry, Record
from fedzo.noise import Distribution, get_backend
from fedzo.state.replica import Replica
from fedzo.state.statefile import PAGE_BYTES, load_state, save_state

COVERED_BYTES = 16 + 1 + 8 + 32 + 32 + 32 + 32
"""Of the page: magic, clean, position, record hash, state digest, manifest digest, checksum."""
HASHES = [blake3(bytes([position])).digest() for position in range(4)]


def make_replica(manifest: Manifest = MANIFEST, seed: int = 0) -> Replica:
    """A replica of random integers at position 0."""
    generator = torch.Generator().manual_seed(seed)
    elements = sum(prod(spec.shape) for spec in manifest)
    state = torch.randint(-(2**30), 2**30, (elements,), dtype=torch.int32, generator=generator)
    replica = Replica(manifest, state, Distribution.RADEMACHER, backend=get_backend("reference"))
    replica.record_hash = HASHES[0]
    return replica


def moved_replica() -> Replica:
    """A replica three records on."""
    replica = make_replica()
    for position in range(1, 4):
        entries = (Entry(position, 2**40), Entry(0, -(2**38) + position))
        replica.apply(Record(position, Commit(entries, 0.1, ())), HASHES[position])
    return replica


@pytest.fixture
def saved(tmp_path) -> Path:
    """The state file of `moved_replica`."""
    save_state(tmp_path / "state", moved_replica())
    return tmp_path / "state"


def assert_refused(path: Path, match: str, hashes=HASHES) -> None:
    """The file does not load, and says why; a file whose page is refused leaves the replica as it was."""
    replica = make_replica(seed=1)
    with pytest.raises(StateFileError, match=match) as refusal:
        load_state(path, replica, hashes)
    assert str(path) in str(refusal.value)
    if "integers" not in match and "last tensor" not in match:
        untouched = make_replica(seed=1)
        assert torch.equal(replica.state, untouched.state)
        assert (replica.position, replica.record_hash) == (0, HASHES[0])
        assert replica.digest() == untouched.digest()


def test_what_was_saved_is_loaded(saved):
    written, read = moved_replica(), make_replica(seed=1)
    assert read.digest() != written.digest()
    load_state(saved, read, HASHES)
    assert torch.equal(read.state, written.state)
    assert read.digest() == written.digest()
    assert (read.position, read.record_hash) == (3, HASHES[3])


def test_a_loaded_replica_goes_on_as_the_saved_one(saved):
    entries = (Entry(2, 12345), Entry(9, -(2**35)))
    records = [Record(n, Commit((Entry(n, 2**40), Entry(0, -(2**38) + n)), 0.1, ())) for n in range(1, 4)]
    records.append(Record(4, Commit(entries, 0.1, ())))
    straight = moved_replica()
    straight.apply(records[3], b"4" * 32)
    resumed = make_replica(seed=1)
    load_state(saved, resumed, HASHES)
    resumed.resume(records, [*HASHES, b"4" * 32])
    assert resumed.digest() == straight.digest()
    assert resumed.totals == straight.totals
    assert (resumed.position, resumed.record_hash) == (4, b"4" * 32)


def test_saving_again_replaces_the_state_and_equal_states_make_equal_files(saved):
    first = saved.read_bytes()
    save_state(saved, make_replica())
    read = make_replica(seed=1)
    load_state(saved, read, HASHES)
    assert (read.position, read.digest()) == (0, make_replica().digest())
    save_state(saved, moved_replica())
    assert saved.read_bytes() == first
    assert len(first) == PAGE_BYTES + 4 * MANIFEST.elements


def test_a_longer_file_of_another_run_is_shortened(saved):
    saved.write_bytes(b"\xff" * 3 * PAGE_BYTES)
    save_state(saved, moved_replica())
    assert saved.stat().st_size == PAGE_BYTES + 4 * MANIFEST.elements
    read = make_replica(seed=1)
    load_state(saved, read, HASHES)
    assert read.digest() == moved_replica().digest()


def test_a_manifest_with_empty_tensors_and_scalars(tmp_path):
    manifest = Manifest((TensorSpec("a", (), 29, 1), TensorSpec("b", (0, 4), 29, 0), TensorSpec("c", (3,), 20, 9)))
    written, read = make_replica(manifest), make_replica(manifest, seed=1)
    save_state(tmp_path / "state", written)
    load_state(tmp_path / "state", read, HASHES)
    assert read.digest() == written.digest()


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_cut_short_anywhere_is_refused(saved):
    data = saved.read_bytes()
    page, integers = (0, 1, 15, 16, 17, 25, COVERED_BYTES - 1, COVERED_BYTES, 512, PAGE_BYTES - 1), len(data)
    for length in page:
        saved.write_bytes(data[:length])
        assert_refused(saved, "torn or damaged")
    for length in range(PAGE_BYTES, integers):
        saved.write_bytes(data[:length])
        assert_refused(saved, "ends before the last tensor")


def test_any_flipped_byte_of_the_page_is_refused(saved):
    data = saved.read_bytes()
    for offset in range(COVERED_BYTES):
        for flip in (1 << offset % 8, 0xFF):
            damaged = bytearray(data)
            damaged[offset] ^= flip
            saved.write_bytes(damaged)
            assert_refused(saved, "torn or damaged")


def test_a_flipped_byte_of_the_padding_never_gives_a_wrong_state(saved):
    """The padding says nothing; whether it is checked or not, what loads is right."""
    data = saved.read_bytes()
    assert data[COVERED_BYTES:PAGE_BYTES] == bytes(PAGE_BYTES - COVERED_BYTES)
    for offset in chain(range(COVERED_BYTES, COVERED_BYTES + 8), range(PAGE_BYTES - 8, PAGE_BYTES)):
        damaged = bytearray(data)
        damaged[offset] ^= 0xFF
        saved.write_bytes(damaged)
        read = make_replica(seed=1)
        try:
            load_state(saved, read, HASHES)
        except StateFileError:
            continue
        assert (read.position, read.digest()) == (3, moved_replica().digest())


def test_any_flipped_byte_of_the_integers_is_refused(saved):
    data = saved.read_bytes()
    for offset in range(PAGE_BYTES, len(data)):
        damaged = bytearray(data)
        damaged[offset] ^= 1 << offset % 8
        saved.write_bytes(damaged)
        assert_refused(saved, "its integers do not have the digest")


def test_pages_and_integers_of_two_states_do_not_mix(saved):
    data = saved.read_bytes()
    save_state(saved, make_replica())
    other = saved.read_bytes()
    for mixed in (data[:PAGE_BYTES] + other[PAGE_BYTES:], other[:PAGE_BYTES] + data[PAGE_BYTES:]):
        saved.write_bytes(mixed)
        assert_refused(saved, "its integers do not have the digest")


def _forge(saved: Path, offset: int, new: bytes) -> None:
    """Change the page and make its checksum hold again."""
    data = bytearray(saved.read_bytes())
    data[offset : offset + len(new)] = new
    data[COVERED_BYTES - 32 : COVERED_BYTES] = blake3(data[: COVERED_BYTES - 32]).digest()
    saved.write_bytes(data)


def test_a_dirty_page_is_refused(saved):
    _forge(saved, 16, b"\x00")
    assert_refused(saved, "was being written")


def test_another_format_version_is_refused(saved):
    _forge(saved, 0, b"fedzo-state-2\n")
    assert_refused(saved, "fedzo-state-2")


def test_a_file_of_another_manifest_is_refused(saved):
    a, b = MANIFEST.tensors
    for manifest in (
        Manifest((a, TensorSpec("b.bias", (4,), 27, 2**28))),
        Manifest((a, TensorSpec("c.bias", (4,), 28, 2**28))),
        Manifest((TensorSpec("a.weight", (3, 2), 29, 2**29), b)),
        Manifest((TensorSpec("a.weight", (2, 3), 29, 2**29 - 1), b)),
        Manifest((a, b, TensorSpec("c", (0,), 29, 0))),
    ):
        with pytest.raises(StateFileError, match="another manifest"):
            load_state(saved, make_replica(manifest), HASHES)


def test_a_position_that_the_journal_does_not_have_is_refused(saved):
    assert_refused(saved, "position 3 is not on this journal", HASHES[:3])
    assert_refused(saved, "position 3 is not on this journal", [*HASHES[:3], bytes(32)])
    assert_refused(saved, "position 3 is not on this journal", [*HASHES[:3], HASHES[2], HASHES[3]])


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 9000, b"\xff" * 9000, b"text\n" * 2000])
def test_what_is_no_state_file_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "state").write_bytes(content)
    assert_refused(tmp_path / "state", "cannot be read" if content is None else "torn or damaged")


# ── a full disk and kill -9 ─────────────────────────────────────────────────────────────────────────

FULL = """
import json, resource, signal, sys
from pathlib import Path
from helpers import big_replica
from fedzo.errors import StateFileError
from fedzo.state.statefile import save_state

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, said = Path(sys.argv[1]), []
for limit in json.loads(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_state(path.with_name(f"state-{limit}"), big_replica(2))
    except StateFileError as error:
        said.append(str(error))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps(said))
"""
BIG_HASHES = [big_replica_hash(position) for position in range(10_000)]


def test_a_save_that_the_disk_refuses_is_an_error_and_its_file_does_not_load(tmp_path):
    limits = [0, 100, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, PAGE_BYTES + 3_999_999]
    for limit in limits:
        save_state(tmp_path / f"state-{limit}", big_replica(1))
    said = json.loads(run_python(FULL, tmp_path / "state", json.dumps(limits)))
    assert len(said) == len(limits)
    for limit, message in zip(limits, said, strict=True):
        path = tmp_path / f"state-{limit}"
        assert f"{path}: not written (File too large)" in message
        read = big_replica(0)
        if limit == 0:
            load_state(path, read, BIG_HASHES)
            assert torch.equal(read.state, big_replica(1).state), "not a byte was written: it is the former state"
        else:
            with pytest.raises(StateFileError, match=r"torn or damaged|was being written"):
                load_state(path, read, BIG_HASHES)
        save_state(path, big_replica(3))
        load_state(path, read, BIG_HASHES)
        assert (read.position, read.digest()) == (3, big_replica(3).digest())


def test_a_directory_that_is_not_there_is_a_state_file_error(tmp_path):
    with pytest.raises(StateFileError, match="No such file or directory"):
        save_state(tmp_path / "absent" / "state", make_replica())


SAVER = """
from pathlib import Path
from helpers import big_replica
from fedzo.state.statefile import save_state

def work(argument, say):
    path, position = argument.split()
    replica = big_replica(int(position))
    say("begin")
    while True:
        save_state(Path(path), replica)
        say(replica.position)
        replica = big_replica(replica.position + 1)
"""


def test_a_saver_killed_at_any_moment_leaves_a_saved_state_or_none(tmp_path):
    path = tmp_path / "state"
    moments, position, saves = random.Random(1), 1, 0
    with Victims(SAVER) as savers:
        for _ in range(10):
            said = [int(line) for line in savers.run_and_kill(f"{path} {position}", moments.uniform(0.01, 0.2))[1:]]
            under_way = said[-1] + 1 if said else position
            read = big_replica(0)
            try:
                load_state(path, read, BIG_HASHES)
            except StateFileError as error:
                assert "was being written" in str(error) or "cannot be read" in str(error)  # noqa: PT017
            else:
                assert read.position in (under_way - 1, under_way)
                expected = big_replica(read.position)
                assert torch.equal(read.state, expected.state)
                assert (read.digest(), read.record_hash) == (expected.digest(), expected.record_hash)
            saves += len(said)
            position = under_way
    assert saves >= 3, "hardly anything was saved: the test shows nothing"
