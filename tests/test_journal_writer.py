"""Writing a journal: one writer, durable before it says so, whatever the disk or a kill does."""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import MANIFEST, Victims, make_genesis, numbered_record, run_python
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from journals import (
    RECORDS,
    records_of,
    split_frames,
    write_journal,
)

from fedzo.errors import (
    JournalError,
    JournalLockedError,
    JournalWriteError,
)
from fedzo.journal import (
    End,
    Journal,
    Record,
    read_journal,
)
from fedzo.journal.genesis_codec import decode_genesis, encode_genesis

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
