"""From a commit's reports to its entries: those of a round together, those of an asynchronous run each by itself.

FedBuff (Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation") applies the mean of K buffered
updates, each times a weight that falls with the number of commits τ since the state it was made at, polynomial with
power ½ in its experiments:

    θ ← θ − η Σ_r (n_r / n) (1 + τ_r)^(−1/2) Σ_steps (1/P) Σ_p g_{r,p} z(seed_{r,p})

with n_r the examples of report r and n the sum over the buffer. The weights are not normalised: what is late counts
less, and nothing counts more for it. Entries commute, so a replica need not know any of this.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

from fedzo.journal.records import ClientReport, Entry, Genesis
from fedzo.methods import MethodReport, MethodRound, get_method, method_reports


def staleness_weight(staleness: int) -> float:
    """(1 + τ)^(−1/2), as a square root and a division, which every machine rounds alike."""
    return 1 / sqrt(1 + staleness)


def commit_entries(
    genesis: Genesis, round_number: int, learning_rate: float, reports: Sequence[ClientReport], memory: Any
) -> tuple[Entry, ...]:
    """The entries of a commit.

    Args:
        genesis: of the run.
        round_number: that the commit ends.
        learning_rate: of the commit.
        reports: in ascending order of client index, then ticket.
        memory: the method's, of earlier rounds.
    """
    method = get_method(genesis.rules.method)
    if not genesis.rules.asynchronous:
        return method.aggregate(MethodRound(genesis, round_number, memory), learning_rate, method_reports(reports))
    total = sum(report.examples for report in reports)
    entries: list[Entry] = []
    for report in reports:
        share = report.examples / total * staleness_weight(report.staleness)
        scalars = tuple(share * scalar for scalar in report.projected_gradients)
        line = MethodReport(report.client, report.examples, scalars)
        entries += method.aggregate(MethodRound(genesis, report.ticket, memory), learning_rate, [line])
    return tuple(entries)
