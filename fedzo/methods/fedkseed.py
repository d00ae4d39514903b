"""`fedkseed`: directions come from a pool of K seeds, so K totals are the whole history of a run.

FedKSeed (Qin et al. 2024, "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost
under 18 Kilobytes", algorithm 1): in every local step a client draws a seed of the pool uniformly and steps along
it; with n_c the examples of client c, n their sum, and steps (s, g) of the clients,

    A(s) ← A(s) − η Σ_c (n_c / n) Σ_{steps of c along s} g / P

A late joiner needs the K totals, whatever the number of rounds.
"""

from collections.abc import Sequence
from typing import ClassVar

from fedzo.journal.records import Entry
from fedzo.methods.distinct import Distinct
from fedzo.methods.method import MethodReport, MethodRound, to_coefficient
from fedzo.noise.draws import pool_choices, pool_seeds


class FedKSeed(Distinct):
    """See `fedzo.methods.method.Method`."""

    usual: ClassVar = {"pool_size": 1024}

    def plan(self, at: MethodRound, client: int) -> list[int]:
        """Seeds of the pool, drawn uniformly from (run seed, round, client)."""
        pool = pool_seeds(at.genesis.run_seed, at.rules.pool_size)
        drawn = pool_choices(at.genesis.run_seed, at.number, client, at.draws, at.rules.pool_size)
        return [pool[k] for k in drawn]

    def aggregate(self, at: MethodRound, learning_rate: float, reports: Sequence[MethodReport]) -> tuple[Entry, ...]:
        """−η Σ (n_c/n) g / P: one entry for every seed of the pool that was drawn, in order of first use."""
        total = sum(report.examples for report in reports)
        sums: dict[int, float] = {}
        for report in reports:
            weight = report.examples / total / at.rules.directions
            seeds = self.plan(at, report.client)
            for seed, scalar in zip(seeds, report.projected_gradients, strict=True):
                sums[seed] = sums.get(seed, 0.0) + weight * scalar
        return tuple(Entry(seed, to_coefficient(-learning_rate * value)) for seed, value in sums.items())
