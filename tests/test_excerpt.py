"""An excerpt: a copy of the journal that begins with totals, and what is made of it, against the whole journal."""

import errno
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from unittest.mock import Mock

import pytest
import torch
from commands import fedzo
from coordination import NAMES, ReplicaRun, scalars_of
from fedzo_server.beginning import Beginnings
from helpers import MANIFEST, make_genesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals import split_frames

from fedzo.coordinator import Connected
from fedzo.errors import (
    ExcerptError,
    JournalDamageError,
    JournalError,
    JournalFormatError,
    JournalWriteError,
    ReplicaError,
)
from fedzo.journal import Entry, Journal, Record, Rollback, Start, read_journal
from fedzo.journal.file import HEADER
from fedzo.journal.genesis_codec import decode_start, encode_start
from fedzo.noise import Distribution, get_backend
from fedzo.noise.draws import pool_seeds
from fedzo.results.rebuild import check_history
from fedzo.state.replica import Replica
from fedzo.v1 import rounds_pb2 as pb
from fedzo.wire.beginning import copy_of

POOL = 16
ROUNDS = 44
ASK = pb.GenesisRequest(totals=True, name=NAMES[1])


class PoolRun(ReplicaRun):
    """A run of `fedkseed` with a real journal and replica, whose first plan is announced."""

    def __init__(self, path, **rules) -> None:
        usual = {"method": "fedkseed", "pool_size": POOL, "attest_every": 7, "rounds": ROUNDS, "learning_rate": 0.01}
        super().__init__(**(usual | rules))
        self.journal = Journal.create(path, self.genesis)
        self.beginnings = Beginnings(self.journal, self.coordinator.history)
        self.send(Connected(NAMES[:2]))

    def play_until(self, position: int, seed: int = 0) -> None:
        """Reports are drawn at random."""
        draw = random.Random(seed)
        self.play(
            lambda run, client: (
                {
                    "projected_gradients": (draw.uniform(-5, 5),),
                    "examples": draw.randint(1, 8),
                    "loss": draw.uniform(2, 3),
                }
                if run.plan.purpose == "train"
                else {}
            ),
            until=lambda run: len(run.records) >= position,
        )

    def roll_back(self, position: int) -> None:
        """As an operator may ask for; the round under way is planned anew."""
        history = self.coordinator.history
        record = Record(history.round, Rollback(position, history.undoing(position), 1.0, "asked for"))
        self.coordinator._pending, self.coordinator._round, self.plan = record, None, None
        self.append(record)

    def begin(self, request: pb.GenesisRequest = ASK) -> pb.GenesisReply:
        return self.beginnings.reply(request)

    def step(self, position: int) -> pb.Step:
        """The record after a position."""
        return pb.Step(payload=self.journal.payload(position + 1), record_hash=self.contents.hashes[position + 1])

    def steps(self, position: int) -> list[tuple[bytes, bytes]]:
        """The records from a position on."""
        hashes = self.contents.hashes
        return [(self.journal.payload(p), hashes[p]) for p in range(position + 1, len(hashes))]


@pytest.fixture
def rules() -> dict:
    """Of the run, but for the usual ones."""
    return {}


@pytest.fixture
def run(tmp_path, rules) -> Iterator[PoolRun]:
    made = PoolRun(tmp_path / "server", **rules)
    yield made
    made.journal.close()


def excerpt_of(run: PoolRun, path) -> Journal:
    """What a client that joins now has when it has caught up."""
    excerpt = Journal.create_whole(path, copy_of(run.begin()))
    excerpt.append_copies(run.steps(excerpt.position))
    return excerpt


def fresh_replica() -> Replica:
    """At the base."""
    state = torch.full((MANIFEST.elements,), 2**20, dtype=torch.int32)
    return Replica(MANIFEST, state, Distribution.RADEMACHER, backend=get_backend("reference"))


def assert_as_whole(run: PoolRun, excerpt: Journal) -> None:
    """Replica, range guard and what a client knows of the run are those that the whole journal gives."""
    contents, whole = excerpt.contents, run.coordinator.history
    assert (excerpt.position, excerpt.record_hash) == (len(run.records), run.head)
    assert contents.records[contents.first :] == run.records[contents.first :]
    history = check_history(contents)
    for name in ("position", "record_hash", "round", "ended", "highest_rate", "anchor", "memory"):
        assert getattr(history, name) == getattr(whole, name), name
    assert history.clients.items() <= whole.clients.items()
    mine, theirs = history.range_guard, whole.range_guard
    assert (mine.totals, mine.anchors, mine.share_used) == (theirs.totals, theirs.anchors, theirs.share_used)
    replica = fresh_replica()
    replica.resume(contents.records, contents.hashes, contents.start)
    assert (replica.position, replica.record_hash) == (run.replica.position, run.replica.record_hash)
    assert (replica.digest(), replica.totals) == (run.replica.digest(), run.replica.totals)


# ── the same as the whole ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rules", [{}, {"calibrated": True, "learning_rate": 0.0}], ids=["a rate", "a rate found"])
def test_an_excerpt_gives_what_the_whole_journal_gives_from_any_position_on(run, tmp_path):
    starts = []
    for position in range(15, ROUNDS, 4):
        run.play_until(position)
        with excerpt_of(run, tmp_path / f"excerpt-{position}") as excerpt:
            starts.append(excerpt.contents.first)
            assert_as_whole(run, excerpt)
            assert excerpt.contents.start.client == NAMES[1]
    assert starts == sorted(starts)
    assert len(set(starts)) > 3, "always the last attested state"
    run.play_until(10**6)
    with excerpt_of(run, tmp_path / "ended") as excerpt:
        assert_as_whole(run, excerpt)
    reopened = read_journal(tmp_path / "excerpt-15")
    assert reopened.position > reopened.first > 0


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(backs=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 40)), min_size=1, max_size=5), seed=scalars_of)
def test_whatever_was_rolled_back_an_excerpt_is_the_whole_or_says_that_it_is_not(backs, seed, tmp_path_factory):
    """Also roll-backs to what a roll-back had undone, as `fedzo rollback` may write them."""
    path = tmp_path_factory.mktemp("run")
    run = PoolRun(path / "server", attest_every=3)
    with run.journal:
        excerpts: list[Journal] = []
        for number, (more, target) in enumerate(backs):
            run.play_until(len(run.records) + more, seed=f"{seed}{number}")
            if run.begin().start:
                excerpts.append(excerpt_of(run, path / f"excerpt-{number}"))
            run.roll_back(min(target, len(run.records)))
        for excerpt in excerpts:
            excerpt.append_copies(run.steps(excerpt.position))
            crossed = any(
                isinstance(record.body, Rollback) and record.body.position <= excerpt.contents.first
                for record in excerpt.contents.records[excerpt.contents.first :]
            )
            if crossed:
                with pytest.raises(ExcerptError, match="has to be begun anew"):
                    check_history(excerpt.contents)
            else:
                assert_as_whole(run, excerpt)
            excerpt.close()
        if run.begin().start:
            with excerpt_of(run, path / "anew") as excerpt:
                assert_as_whole(run, excerpt)


# ── who gets one ────────────────────────────────────────────────────────────────────────────────────


def test_totals_are_sent_where_they_are_fewer_bytes_and_never_more_than_16_an_entry_and_a_kilobyte(run):
    for position in range(2, ROUNDS):
        run.play_until(position)
        reply = run.begin()
        if reply.start:
            records = sum(len(payload) + 40 for payload, _ in run.steps(0)[: check_start(run, reply) + 1])
            assert len(reply.start) + reply.first.ByteSize() < records
            assert len(reply.start) + reply.first.ByteSize() < 16 * POOL + 1000
        else:
            assert position < 20, "totals are fewer bytes soon"
    assert run.begin().start
    assert not run.begin(pb.GenesisRequest(name=NAMES[0])).start, "only who asks for them"


def test_who_has_records_gets_totals_only_where_the_rest_is_more(run):
    run.play_until(40)
    anchor, hashes = check_start(run, run.begin()), run.contents.hashes

    def begins(position: int, digest: bytes) -> bool:
        return bool(run.begin(pb.GenesisRequest(totals=True, position=position, record_hash=digest)).start)

    given = [begins(position, hashes[position]) for position in range(len(hashes))]
    last = max(position for position in range(len(hashes)) if given[position])
    assert given == [True] * (last + 1) + [False] * (len(hashes) - last - 1)
    assert 0 < last < anchor - 1, "near the anchor the records are less"
    assert not begins(last, hashes[last + 1]), "who is on another journal is to say so when it joins"
    assert not begins(2**64 - 1, bytes(32))


def check_start(run: PoolRun, reply: pb.GenesisReply) -> int:
    """The position of the start, whose totals are the run's there."""
    start = decode_start(run.genesis, reply.start)
    assert dict(start.entries) == run.totals(start.position)
    assert start.record_hash == run.contents.hashes[start.position]
    return start.position


@pytest.mark.parametrize(
    "rules",
    [
        {"method": "distinct", "pool_size": 0},
        {"method": "fedkseed-pro"},
        {"method": "momentum", "pool_size": 0, "momentum_window": 2, "momentum_decay": 0.9},
        {"attest_every": 0},
    ],
    ids=["no pool", "draws follow from all rounds", "rounds before are stepped along again", "nothing attested"],
)
def test_everyone_gets_the_records_where_totals_are_not_all(tmp_path, rules):
    run = PoolRun(tmp_path / "server", **rules)
    with run.journal:
        run.play_until(40)
        assert run.begin() == run.begin(pb.GenesisRequest())


def test_a_client_that_was_not_enrolled_gets_no_index(run):
    run.play_until(30)
    start = decode_start(run.genesis, run.begin(pb.GenesisRequest(totals=True, name="zoe")).start)
    assert (start.client, start.index) == ("", 0)


# ── the file ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def excerpt(run, tmp_path):
    """The path of one, whose start is at position 14 of 20."""
    run.play_until(20)
    (tmp_path / "client").mkdir()
    excerpt_of(run, tmp_path / "client" / "journal").close()
    return tmp_path / "client" / "journal"


def test_a_copy_that_cannot_take_another_ones_place_leaves_it_there(run, tmp_path, monkeypatch):
    path = tmp_path / "copy"
    excerpt_of(run, path).close()
    before, full = path.read_bytes(), OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", Mock(side_effect=full))
        with pytest.raises(JournalWriteError, match="No space left on device; what was there is as it was"):
            Journal.create_whole(path, before, replace=True)
    assert path.read_bytes() == before
    assert list(tmp_path.glob("copy*")) == [path]
    with pytest.raises(JournalError, match="exists there already"):
        Journal.create_whole(path, before)
    Journal.create_whole(path, before, replace=True).close()
    assert path.read_bytes() == before


def test_the_bytes_of_a_start_are_those_of_the_format_page():
    genesis = make_genesis(run_seed=7, method="fedkseed", pool_size=3)
    pool = pool_seeds(7, 3)
    start = Start(
        position=300,
        record_hash=bytes(range(32)),
        entries=(Entry(pool[0], -1), Entry(pool[2], 2**40)),
        highest_rate=0.5,
        client="anna",
        index=1,
    )
    totals = "1a08" + "01" + "00" + "808080808040"
    expected = "08ac02" + "1220" + bytes(range(32)).hex() + totals + "21000000000000e03f" + "2a04616e6e61" + "3001"
    assert encode_start(genesis, start).hex() == expected
    assert decode_start(genesis, bytes.fromhex(expected)) == start


def test_every_flipped_byte_of_an_excerpt_is_found(excerpt, tmp_path):
    data = excerpt.read_bytes()
    whole = read_journal(excerpt)
    begins = list(accumulate(map(len, split_frames(data)[:-1]), initial=len(HEADER)))
    for offset in range(len(data)):
        damaged = bytearray(data)
        damaged[offset] ^= 1 << offset % 8
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises((JournalDamageError, JournalFormatError)) as error:
            read_journal(tmp_path / "damaged")
        named = [offset >= begin for begin in begins].count(True)
        names = ["", "the genesis", "the start", *(f"record {n}" for n in range(whole.first + 1, whole.position + 1))]
        assert f"damaged: {names[named]} at byte {begins[named - 1]}" in str(error.value) or not named
    assert whole.position == 20


def test_a_torn_excerpt_is_cut_to_its_whole_records_and_is_none_without_its_start(excerpt, tmp_path):
    data, whole, torn = excerpt.read_bytes(), read_journal(excerpt), tmp_path / "torn"
    positions = set()
    for length in range(len(data)):
        torn.write_bytes(data[:length])
        try:
            found = read_journal(torn)
        except JournalFormatError:
            positions.add(None)
            continue
        assert found.hashes == whole.hashes[: found.position + 1]
        assert found.torn_bytes == length - found.valid_bytes
        positions.add(found.position)
    assert positions == {None, *range(whole.first, whole.position)}


def test_what_an_excerpt_lacks_is_asked_for_in_vain_and_said(excerpt):
    contents = read_journal(excerpt)
    with Journal.open(excerpt, excerpts=True) as opened:
        assert opened.contents.hashes == contents.hashes
        assert opened.contents.records[contents.first :] == contents.records[contents.first :]
    assert (len(contents.hashes[0]), contents.hashes[1], len(contents.hashes[contents.first])) == (32, b"", 32)
    with pytest.raises(ExcerptError, match=rf"record 1 is not in this copy .* totals at position {contents.first};"):
        list(contents.records)
    with pytest.raises(JournalFormatError, match="a client's excerpt, which begins with the totals at position"):
        Journal.open(excerpt)
    shown = fedzo("journal", "show", excerpt.parent).stdout
    assert f"{contents.first}  the totals of {len(contents.start.entries)} seeds in place of the records" in shown
    assert shown.count("round") == contents.position - contents.first
    for command in (("rollback", excerpt.parent, "--to", 16), ("artifact", excerpt.parent, "--out", "no")):
        failed = fedzo(*command, check=False)
        assert failed.returncode
        assert "totals at position" in failed.stderr


# ── hostile or garbled ──────────────────────────────────────────────────────────────────────────────


def unattested(run: PoolRun, start: Start) -> bytes:
    """A start one position later, after which nothing is stated."""
    position = start.position + 1
    return encode_start(run.genesis, replace(start, position=position, record_hash=run.contents.hashes[position]))


def test_totals_that_cannot_be_are_refused_before_anything_is_written(run):
    run.play_until(30)
    reply, larger = run.begin(), make_genesis(method="fedkseed", pool_size=POOL + 1)
    start = decode_start(run.genesis, reply.start)
    pool = pool_seeds(run.genesis.run_seed, POOL)
    for change, said in (
        ({"start": encode_start(larger, start)}, f"{POOL + 1} totals; expected {POOL}"),
        ({"start": b"\xff"}, "is not a Start"),
        ({"start": encode_start(run.genesis, replace(start, position=0))}, "at position 0"),
        ({"start": encode_start(run.genesis, replace(start, record_hash=b"12"))}, "has 2 bytes of a record hash"),
        ({"start": encode_start(run.genesis, replace(start, entries=((pool[3], 2**62),)))}, "expected one within"),
        ({"start": encode_start(run.genesis, replace(start, record_hash=bytes(32)))}, "does not follow"),
        ({"first": pb.Step(payload=b"", record_hash=bytes(32))}, "does not follow"),
        ({"start": unattested(run, start), "first": run.step(start.position + 1)}, "does not state the digest"),
        ({"record_hash": bytes(32)}, "the genesis does not have the hash"),
    ):
        other = pb.GenesisReply.FromString(reply.SerializeToString())
        for name, value in change.items():
            other.ClearField(name)
            other.MergeFrom(pb.GenesisReply(**{name: value}))
        with pytest.raises(JournalDamageError, match=said):
            copy_of(other)


def test_totals_of_another_state_are_found_by_the_digest_that_clients_attested(run, tmp_path):
    run.play_until(30)
    reply = run.begin()
    start = decode_start(run.genesis, reply.start)
    (seed, total), *others = start.entries
    reply.start = encode_start(run.genesis, replace(start, entries=((seed, total + 2**20), *others)))
    with Journal.create_whole(tmp_path / "excerpt", copy_of(reply)) as excerpt:
        contents, replica = excerpt.contents, fresh_replica()
        with pytest.raises(ReplicaError, match=f"at position {start.position} this replica's state digest is"):
            replica.resume(contents.records, contents.hashes, contents.start)
