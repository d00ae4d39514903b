"""A journal that is open for writing takes no more memory the longer it is, and still shows every record as written."""

import gc
import resource
import tracemalloc
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from fedzo_server.feed import Feed
from helpers import make_genesis
from hypothesis import given
from hypothesis import strategies as st
from journals import RECORDS, made_journal, payloads_of

from fedzo.coordinator import Announce, Append, Appended, Connected, Coordinator, Report
from fedzo.coordinator.seed_totals import SeedTotals
from fedzo.errors import JournalDamageError, JournalError
from fedzo.journal import Journal, read_journal
from fedzo.journal.stored import RECENT

LONG = RECORDS * 5
CLIENTS = 8
BYTES_A_ROUND = 100
"""At the most: a record's 40, twice while their column grows."""


def test_every_record_and_payload_is_there_however_far_back(tmp_path):
    with made_journal(tmp_path / "journal", LONG) as journal:
        records, plain = journal.contents.records, read_journal(tmp_path / "journal")
        assert len(LONG) > 4 * RECENT
        assert list(records) == LONG == records == plain.records
        assert journal.contents.hashes == plain.hashes
        assert [records[k] for k in range(-len(LONG), 0)] == LONG
        assert records[3:-5:7] == LONG[3:-5:7]
        assert records != LONG[:-1]
        assert records != [*LONG[1:], LONG[0]]
        with pytest.raises(IndexError):
            records[len(LONG)]
        payloads = payloads_of(tmp_path / "journal")
        assert [journal.payload(position) for position in range(len(LONG) + 1)] == payloads


def test_a_byte_that_changes_under_an_open_journal_is_damage_by_name_and_never_a_record(tmp_path):
    path = tmp_path / "journal"
    with made_journal(path, LONG) as journal:
        data = bytearray(path.read_bytes())
        data[data.index(journal.payload(4)) + 2] ^= 1
        path.write_bytes(data)
        assert journal.contents.records[:3] == LONG[:3]
        with pytest.raises(JournalDamageError, match=r"record 4 at byte \d+ is damaged: its bytes have changed"):
            journal.contents.records[3]
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(JournalDamageError, match=f"record {len(LONG)} at byte"):
            journal.payload(len(LONG))


def test_a_closed_journal_says_that_it_cannot_be_read(tmp_path):
    with made_journal(tmp_path / "journal", LONG) as journal:
        pass
    with pytest.raises(JournalError, match="record 1 cannot be read"):
        list(journal.contents.records)


def test_memory_does_not_grow_with_the_rounds(tmp_path):
    """All that a server keeps of a run: the journal, what the coordinator knows, what clients are to be told."""
    genesis = make_genesis(cohort=CLIENTS, quorum=CLIENTS, rounds=10_000, learning_rate=1e-6)
    with Journal.create(tmp_path / "journal", genesis) as journal:
        coordinator, feed = Coordinator(journal.contents), Feed(journal)
        decisions = coordinator.handle(Connected(tuple(f"client-{k}" for k in range(CLIENTS))), 0.0)
        tracemalloc.start()
        try:
            used = []
            for rounds in count():
                if rounds in (400, 1600):
                    gc.collect()
                    used.append(tracemalloc.get_traced_memory()[0])
                if rounds == 1600:
                    break
                decisions = one_round(coordinator, journal, feed, decisions)
        finally:
            tracemalloc.stop()
        assert journal.position == 1601
        assert used[1] - used[0] < 1200 * BYTES_A_ROUND


def one_round(coordinator, journal, feed, decisions):
    """Carry out what was decided, up to the next plan."""
    queue = list(decisions)
    while queue:
        match queue.pop(0):
            case Append(record):
                feed.prepare(record)
                digest = journal.append(record)
                feed.appended()
                queue += coordinator.handle(Appended(record, digest), 0.0)
                if record.entries:
                    return queue
            case Announce(plan):
                for client in plan.cohort:
                    report = Report(
                        purpose=plan.purpose,
                        round=plan.round,
                        client=client,
                        record_hash=plan.record_hash,
                        examples=4,
                        loss=2.0,
                        projected_gradients=(0.25,),
                    )
                    queue += coordinator.handle(report, 0.0)
    raise AssertionError("the round was not committed")


seeds = st.integers(0, 2**64 - 1) | st.integers(0, 20)
steps = st.lists(
    st.none() | st.dictionaries(seeds, st.integers(-(2**62), 2**62) | st.just(0), max_size=30), max_size=60
)


@given(steps)
def test_totals_in_the_database_are_those_of_a_dictionary(steps):
    """None stands for an anchor."""
    found, totals, anchors = SeedTotals(), {}, {}
    for change in steps:
        if change is None:
            found.anchor()
            anchors = dict(totals)
        else:
            found.put(change, found.of(list(change))[1].tolist())
            totals |= change
        asked = [*totals, 5, 2**64 - 1]
        assert found.of(asked).tolist() == [[totals.get(s, 0) for s in asked], [anchors.get(s, 0) for s in asked]]
    assert dict(found.nonzero()) == {seed: total for seed, total in totals.items() if total}
    assert dict(found.nonzero_anchors()) == {seed: total for seed, total in anchors.items() if total}


def test_memory_does_not_grow_with_seeds_and_each_is_found():
    found, rounds, reports = SeedTotals(), 400, 2000
    seeds = np.random.default_rng(0).permutation(2**20)[: rounds * reports].tolist()
    grown = 0.0
    for k in range(rounds):
        if k == 10:
            grown = -_resident_mb()
        new = seeds[k * reports : (k + 1) * reports]
        found.put(dict(zip(new, range(1, reports + 1), strict=True)), [0] * reports)
    grown += _resident_mb()
    assert grown < 8, "the cache takes 2; 780,000 seeds at 24 bytes each would take 19"
    assert found.of(seeds[:reports])[0].tolist() == list(range(1, reports + 1))
    assert sum(1 for _ in found.nonzero()) == len(seeds)


def test_a_full_disk_is_said_with_what_to_do():
    found = SeedTotals()
    found._database.execute("PRAGMA max_page_count = 20")
    with pytest.raises(OSError, match="SQLITE_TMPDIR"):
        found.put({97 * k: 1 for k in range(10_000)}, [0] * 10_000)


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
