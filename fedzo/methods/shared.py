"""`shared`: all clients evaluate the same directions, and their scalars are averaged.

DeComFL (Li et al. 2024, "Achieving Dimension-Free Communication in Federated Learning via Zeroth-Order
Optimization", algorithms 1 and 3): K local steps of P directions a round, z_{k,p} the same for all; every client
takes its own local steps, forgets them, and with C clients in the round

    θ ← θ − η Σ_k (1/P) Σ_p (1/C) Σ_c g_{c,k,p} z(seed_{k,p})

A round's record has K·P entries, however many clients there are. All scalars of a direction estimate one thing, so the
mean over clients may be a robust aggregation in its place (`fedzo.methods.robust`).
"""

from collections.abc import Sequence

from fedzo.journal.records import Entry
from fedzo.methods.method import Method, MethodReport, MethodRound, to_coefficient
from fedzo.methods.robust import combine
from fedzo.noise.draws import derived_seeds


class Shared(Method):
    """See `fedzo.methods.method.Method`."""

    incomparable = ""
    needs_rounds = "its clients evaluate the same directions"

    def plan(self, at: MethodRound, client: int) -> list[int]:
        """Seeds derived from (run seed, round): the client index of the derivation is 0 for all."""
        return derived_seeds(at.genesis.run_seed, at.number, 0, at.draws)

    def aggregate(self, at: MethodRound, learning_rate: float, reports: Sequence[MethodReport]) -> tuple[Entry, ...]:
        """−η (mean over clients of g) / P for every direction, or what the aggregation makes of them."""
        seeds = self.plan(at, 0)
        if at.rules.aggregation:
            combined = combine(at.rules, [report.projected_gradients for report in reports])
            moves = [self.local_step(at.rules, learning_rate, scalar) for scalar in combined]
            return tuple(Entry(seed, move) for seed, move in zip(seeds, moves, strict=True))
        share = learning_rate / at.rules.directions / len(reports)
        sums = [sum(scalars) for scalars in zip(*(report.projected_gradients for report in reports), strict=True)]
        return tuple(Entry(seed, to_coefficient(-share * total)) for seed, total in zip(seeds, sums, strict=True))
