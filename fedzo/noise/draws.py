"""Everything else that is drawn: seeds, cohorts, orders, partitions, simulated faults.

Each is a pure function of (run seed, purpose, and the counters named below) through one Philox block with
the run's seed as key, so that no process needs a generator's state and two purposes never share a block.
The tags are part of the numerics contract (docs/numerics.md); vectors are in `tests/golden/draws.txt`.

    tag  purpose         counter words 0, 1, 2
    3    derived seed    j, client index (0 where directions are shared), round
    4    cohort          client index, 0, round
    5    batch order     example, client index, epoch
    6    partition       row mod 2³², row div 2³², 0; the seed of a library's partitioner: 0, 0, 1
    7    simulated fault client index, 0, round     (x₀: drop; x₁: delay)
    8    pool choice     j, client index, round

A pool of seeds (FedKSeed) is the derived seeds of round 0 and client 0; rounds are counted from 1.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedzo.noise.philox import Words, join64, philox4x32, split64

TAG_SEED = 3
TAG_COHORT = 4
TAG_BATCH = 5
TAG_PARTITION = 6
TAG_FAULT = 7
TAG_POOL = 8


def _block(run_seed: int, tag: int, a: object, b: object, c: object) -> Words:
    return philox4x32((a, b, c, tag), split64(run_seed))  # type: ignore[arg-type]


def _first64(words: Words) -> NDArray[np.uint64]:
    return join64(words[..., 0], words[..., 1])


def derived_seeds(run_seed: int, round_number: int, client: int, count: int) -> list[int]:
    """Seeds 0..count−1 of a round for one client index (docs/numerics.md, "Draws from the run's seed", tag 3)."""
    return [int(s) for s in _first64(_block(run_seed, TAG_SEED, np.arange(count), client, round_number))]


def derived_seeds_of_clients(run_seed: int, round_number: int, clients: Sequence[int], count: int) -> list[list[int]]:
    """`derived_seeds` of each client, drawn together."""
    indices = np.array(clients, dtype=np.uint64)[:, None]
    drawn: list[list[int]] = _first64(_block(run_seed, TAG_SEED, np.arange(count), indices, round_number)).tolist()
    return drawn


@lru_cache(maxsize=4)
def pool_seeds(run_seed: int, size: int) -> tuple[int, ...]:
    """The seeds of a run's pool."""
    return tuple(derived_seeds(run_seed, 0, 0, size))


def pool_choices(run_seed: int, round_number: int, client: int, count: int, size: int) -> list[int]:
    """`count` indices into a pool, uniformly with replacement: ⌊u·size / 2⁶⁴⌋ of 64-bit words u."""
    words = _first64(_block(run_seed, TAG_POOL, np.arange(count), client, round_number))
    return [int(word) * size >> 64 for word in words]


def weighted_choices(run_seed: int, round_number: int, client: int, count: int, ends: Sequence[int]) -> list[int]:
    """As `pool_choices`, in proportion to integer weights: the least k whose running sum exceeds ⌊u·Σw / 2⁶⁴⌋.

    Args:
        run_seed, round_number, client, count: as `pool_choices`.
        ends: running sums of the weights, the last of them their sum.
    """
    words = _first64(_block(run_seed, TAG_POOL, np.arange(count), client, round_number))
    return [bisect_right(ends, int(word) * ends[-1] >> 64) for word in words]


def choose_cohort(run_seed: int, round_number: int, available: list[int], size: int) -> tuple[int, ...]:
    """`size` of the available client indices, uniformly without replacement, in ascending order."""
    ranks = _first64(_block(run_seed, TAG_COHORT, np.asarray(available, dtype=np.uint64), 0, round_number))
    by_rank = sorted(zip(ranks.tolist(), available, strict=True))
    return tuple(sorted(client for _, client in by_rank[:size]))


def epoch_order(run_seed: int, client: int, epoch: int, examples: int) -> NDArray[np.int64]:
    """A permutation of range(examples): the order in which a client's data is visited in an epoch."""
    keys = _first64(_block(run_seed, TAG_BATCH, np.arange(examples), client, epoch))
    return np.argsort(keys, kind="stable")


def partition_order(run_seed: int, rows: int) -> NDArray[np.int64]:
    """A permutation of range(rows), to deal rows to clients independently of their order in the file."""
    low, high = split64(np.arange(rows))
    return np.argsort(_first64(_block(run_seed, TAG_PARTITION, low, high, 0)), kind="stable")


def partitioner_seed(run_seed: int) -> int:
    """32 bits to seed a library's own partitioner with."""
    return int(_block(run_seed, TAG_PARTITION, 0, 0, 1)[..., 0])


def fault_draws(run_seed: int, round_number: int, client: int) -> tuple[float, float]:
    """Two uniform numbers in [0, 1): whether a simulated client drops out, and how late it is."""
    words = _block(run_seed, TAG_FAULT, client, 0, round_number)
    return float(words[0]) / 2**32, float(words[1]) / 2**32
