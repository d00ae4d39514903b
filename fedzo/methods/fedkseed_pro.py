"""`fedkseed-pro`: as `fedkseed`, but a seed whose scalars were large is drawn more often.

FedKSeed-Pro (Qin et al. 2024, probability-differentiated seed sampling): with ḡ_j the mean |g| over all local steps
that any client took along seed j of the pool, 0 for a seed not drawn yet,

    γ_j = (ḡ_j − min ḡ) / (max ḡ − min ḡ)        P(seed j) = exp(γ_j) / Σ_k exp(γ_k)

so that the best seed is e times as likely as the worst. Its authors' program begins every seed's mean with one scalar
of 0, which here counts only until the seed is drawn, and cuts |g| off at 1,000. The paper's server sends its clients
the probabilities. Here they follow from the journal, which clients have. A client and the coordinator must draw the
same, so the probabilities are integers all the way (docs/numerics.md, "Draws from the run's seed").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import cached_property
from itertools import accumulate

from fedzo.journal.records import Commit, Genesis, Record
from fedzo.methods.fedkseed import FedKSeed
from fedzo.methods.method import MethodRound, to_coefficient
from fedzo.noise.draws import pool_seeds, weighted_choices

_LEVELS = 255


def _exponentials() -> tuple[int, ...]:
    """Decimal's exp is correctly rounded; that of a C library need not be."""
    with localcontext(Context(prec=28)):
        return tuple(int((Decimal(q) / _LEVELS).exp() * 2**16) for q in range(_LEVELS + 1))


EXPONENTIALS = _exponentials()
"""⌊2¹⁶ exp(q/255)⌋ for each level q."""


@dataclass(frozen=True)
class Importance:
    """What was found along each seed of the pool so far."""

    sums: tuple[int, ...]
    """Σ|g|, units of 2⁻⁴⁰."""
    counts: tuple[int, ...]

    @cached_property
    def weights(self) -> tuple[int, ...]:
        """Of each seed, how often it is to be drawn: ⌊2¹⁶ exp(γ)⌋, γ rounded down to one of 256 levels."""
        means = [total // max(count, 1) for total, count in zip(self.sums, self.counts, strict=True)]
        least = min(means)
        spread = max(max(means) - least, 1)
        return tuple(EXPONENTIALS[(mean - least) * _LEVELS // spread] for mean in means)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Running sums of the weights."""
        return tuple(accumulate(self.weights))


class FedKSeedPro(FedKSeed):
    """See `fedzo.methods.method.Method`."""

    needs_rounds = "what a client draws follows from all commits before, of which one that is at work lacks the latest"

    def memory(self, genesis: Genesis) -> Importance:
        """All seeds are alike."""
        nothing = (0,) * genesis.rules.pool_size
        return Importance(nothing, nothing)

    def remember(self, genesis: Genesis, memory: Importance, record: Record) -> Importance:
        """Add every client's scalars to those of the seeds that it drew."""
        assert isinstance(record.body, Commit)
        sums, counts = list(memory.sums), list(memory.counts)
        for report in record.body.reports:
            drawn = self._choices(MethodRound(genesis, record.round, memory), report.client)
            for k, scalar in zip(drawn, report.projected_gradients, strict=True):
                sums[k] += to_coefficient(abs(scalar))
                counts[k] += 1
        return Importance(tuple(sums), tuple(counts))

    def plan(self, at: MethodRound, client: int) -> list[int]:
        """Seeds of the pool, drawn by importance from (run seed, round, client)."""
        pool = pool_seeds(at.genesis.run_seed, at.rules.pool_size)
        return [pool[k] for k in self._choices(at, client)]

    def _choices(self, at: MethodRound, client: int) -> Sequence[int]:
        importance = self.memory(at.genesis) if at.memory is None else at.memory
        return weighted_choices(at.genesis.run_seed, at.number, client, at.draws, importance.ends)
