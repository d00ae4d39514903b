"""`feedsign`: all clients evaluate the same directions, vote on each by one bit, and the majority decides.

FeedSign (Cai et al. 2025, "FeedSign: Robust Full-parameter Federated Fine-tuning of Large Models with Extremely Low
Communication Overhead of One Bit"), with P directions a step instead of one:

    f_p = sgn( Σ_c sgn(g_{c,p}) )        θ ← θ − η Σ_steps (1/P) Σ_p f_p z(seed_p)

A tie moves nothing. A client's report needs one bit for each direction, and so does the record. The wire and the
journal carry it as the float32 ±1 that every method's scalars are, beside the loss and the number of examples: the
bound on one client's influence is kept, the last factor of 32 is not.
"""

from collections.abc import Sequence

from fedzo.journal.records import Entry, Rules
from fedzo.methods.method import MethodReport, MethodRound, to_coefficient
from fedzo.methods.shared import Shared


class FeedSign(Shared):
    """See `fedzo.methods.method.Method`."""

    incomparable = "its clients vote, and the majority decides"

    def scalars(self, rules: Rules, losses: Sequence[Sequence[float]]) -> list[float]:
        """A vote for each direction: −1 where the loss falls along it, else 1, since a bit has no zero."""
        return [-1.0 if gradient < 0 else 1.0 for gradient in super().scalars(rules, losses)]

    def rate_of(self, rules: Rules, step: float, slope: float, curvature: float) -> float:
        """A vote stands for a slope of the usual size."""
        return step * slope

    def aggregate(self, at: MethodRound, learning_rate: float, reports: Sequence[MethodReport]) -> tuple[Entry, ...]:
        """−η f / P for every direction. Of a scalar only the sign is read, whatever a client sent."""
        seeds = self.plan(at, 0)
        step = to_coefficient(learning_rate / at.rules.directions)
        columns = zip(*(report.projected_gradients for report in reports), strict=True)
        return tuple(Entry(seed, -_majority(votes) * step) for seed, votes in zip(seeds, columns, strict=True))


def _majority(votes: Sequence[float]) -> int:
    balance = sum((vote > 0) - (vote < 0) for vote in votes)
    return (balance > 0) - (balance < 0)
