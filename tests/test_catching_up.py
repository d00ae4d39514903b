"""Catching up with a journal: what a replay gives, for as many directions as there are seeds."""

import numpy as np
import pytest
import torch
from helpers import MANIFEST, backend_for_cpu

from fedzo.errors import ReplicaError
from fedzo.journal import Commit, Entry, Record
from fedzo.noise import Distribution
from fedzo.state.replica import Replica


class CountingBackend:
    """The usual one, and how many directions it has added."""

    name = "counting"

    def __init__(self) -> None:
        self.directions = 0
        self._backend = backend_for_cpu("auto")

    def commit(self, state, segments, steps, threads) -> None:
        self.directions += len(steps.seeds)
        self._backend.commit(state, segments, steps, threads)


def make_replica(backend=None) -> Replica:
    return Replica(MANIFEST, torch.arange(10, dtype=torch.int32), Distribution.RADEMACHER, backend=backend)


def run_with_a_pool(rounds: int, pool: int, attest_every: int) -> tuple[list[Record], list[bytes]]:
    """Records of a run whose entries are of a pool, some with the digest of the state before them; and hashes."""
    draw, records, replica = np.random.default_rng(0), [], make_replica()
    for number in range(1, rounds + 1):
        entries = tuple(Entry(int(seed), int(draw.integers(-(2**20), 2**20))) for seed in draw.integers(0, pool, 8))
        digest = replica.digest() if number % attest_every == 0 else None
        records.append(Record(number, Commit(entries, 1.0, ()), digest))
        replica.add(entries)
    return records, [number.to_bytes(32, "big") for number in range(1, rounds + 1)]


def test_each_seed_of_a_pool_is_added_once():
    records, hashes = run_with_a_pool(rounds=2000, pool=64, attest_every=50)
    digests, added = set(), []
    for way in (Replica.replay, Replica.catch_up):
        backend = CountingBackend()
        replica = make_replica(backend)
        way(replica, records, hashes)
        assert (replica.position, replica.record_hash) == (2000, hashes[-1])
        digests.add(replica.digest())
        added.append(backend.directions)
    print(f"2000 rounds of a pool of 64: {added[0]} directions to replay, {added[1]} to catch up")
    assert len(digests) == 1
    assert added[1] <= 2 * 64, "to the last digest, and from there"
    assert added[0] > 10 * added[1]


@pytest.mark.parametrize("attest_every", [30, 100, 1000])
def test_nothing_stated_or_a_statement_at_an_end_is_no_exception(attest_every):
    records, hashes = run_with_a_pool(rounds=100, pool=16, attest_every=attest_every)
    one, other = make_replica(), make_replica()
    one.replay(records, hashes)
    other.catch_up(records, hashes)
    assert (one.digest(), one.position, one.record_hash) == (other.digest(), other.position, other.record_hash)
    other.catch_up([], [])
    assert other.position == 100


def test_a_state_that_went_wrong_is_found():
    records, hashes = run_with_a_pool(rounds=100, pool=16, attest_every=30)
    replica = make_replica()
    replica.state[5] += 1
    with pytest.raises(ReplicaError, match="at position 89 this replica's state digest is"):
        replica.catch_up(records, hashes)
