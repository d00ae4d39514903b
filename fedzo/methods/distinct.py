"""`distinct`: each client its own directions, all of them committed, weighted by example counts.

FedAvg (McMahan et al. 2017, algorithm 1) with MeZO's estimator as the client's gradient (Malladi et al. 2023): for
client c with nₖ examples evaluated in the round, n their sum, P directions a local step,

    θ ← θ − η Σ_c (n_c / n) Σ_steps (1/P) Σ_p g_{c,p} z(seed_{c,p})

A cohort of C clients so averages C·P directions a round, each on other data.
"""

from collections.abc import Sequence

from fedzo.journal.records import Entry, Rules
from fedzo.methods.method import Method, MethodReport, MethodRound, to_coefficient
from fedzo.noise.draws import derived_seeds, derived_seeds_of_clients


class Distinct(Method):
    """See `fedzo.methods.method.Method`."""

    needs_rounds = ""

    def plan(self, at: MethodRound, client: int) -> list[int]:
        """Seeds derived from (run seed, round, client)."""
        return derived_seeds(at.genesis.run_seed, at.number, client, at.draws)

    def averaged_directions(self, rules: Rules, clients: int) -> int:
        """Those of all clients, unless each takes several steps along its own alone."""
        return rules.directions * (clients if rules.local_steps == 1 else 1)

    def aggregate(self, at: MethodRound, learning_rate: float, reports: Sequence[MethodReport]) -> tuple[Entry, ...]:
        """−η (n_c/n) g / P for every direction of every client."""
        total = sum(report.examples for report in reports)
        clients = [report.client for report in reports]
        drawn = derived_seeds_of_clients(at.genesis.run_seed, at.number, clients, at.draws)
        entries = []
        for report, seeds in zip(reports, drawn, strict=True):
            weight = report.examples / total / at.rules.directions
            for seed, scalar in zip(seeds, report.projected_gradients, strict=True):
                entries.append(Entry(seed, to_coefficient(-learning_rate * weight * scalar)))
        return tuple(entries)
