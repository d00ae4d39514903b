"""`fedkseed`: directions come from a pool of K seeds, so K totals are the whole history of a run.

FedKSeed (Qin et al. 2024, "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost
under 18 Kilobytes", algorithm 1): in every local step a client draws a seed of the pool uniformly and steps along
it; with n_c the examples of client c, n their sum, and steps (s, g) of the clients,

    A(s) ← A(s) − η Σ_c (n_c / n) Σ_{steps of c along s} g / P

A late joiner needs the K totals, whatever the number of rounds.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from fedzo.journal.records import Entry, Genesis, Rules
from fedzo.methods.method import Method, MethodReport, to_coefficient
from fedzo.noise.draws import pool_choices, pool_seeds


class FedKSeed(Method):
    """See `fedzo.methods.method.Method`."""

    usual: ClassVar = {"pool_size": 1024}
    needs_rounds = ""

    def plan(self, genesis: Genesis, round_number: int, client: int, memory: Any = None) -> list[int]:
        """Seeds of the pool, drawn uniformly from (run seed, round, client)."""
        rules = genesis.rules
        pool = pool_seeds(genesis.run_seed, rules.pool_size)
        count = rules.directions * rules.local_steps
        return [pool[k] for k in pool_choices(genesis.run_seed, round_number, client, count, rules.pool_size)]

    def averaged_directions(self, rules: Rules, clients: int) -> int:
        """Those of all clients, unless each takes several steps along its own alone."""
        return rules.directions * (clients if rules.local_steps == 1 else 1)

    def aggregate(
        self,
        genesis: Genesis,
        round_number: int,
        learning_rate: float,
        reports: Sequence[MethodReport],
        memory: Any = None,
    ) -> tuple[Entry, ...]:
        """−η Σ (n_c/n) g / P: one entry for every seed of the pool that was drawn, in order of first use."""
        total = sum(report.examples for report in reports)
        sums: dict[int, float] = {}
        for report in reports:
            weight = report.examples / total / genesis.rules.directions
            seeds = self.plan(genesis, round_number, report.client, memory)
            for seed, scalar in zip(seeds, report.projected_gradients, strict=True):
                sums[seed] = sums.get(seed, 0.0) + weight * scalar
        return tuple(Entry(seed, to_coefficient(-learning_rate * value)) for seed, value in sums.items())
