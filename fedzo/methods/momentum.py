"""`momentum`: as `distinct`, and the directions of the rounds before are stepped along once more, ever less.

Heavy-ball momentum (Polyak 1964), which ZO-Bench (Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for
Memory-Efficient LLM Fine-Tuning: A Benchmark") calls ZO-SGD-MMT, cut off after W rounds: with G_t = Σ w g z the
estimate of the t-th commit (`distinct`'s, without η), β the decay,

    v_t = Σ_{k < W} β^k G_{t−k}        θ ← θ − η v_t

The velocity is never stored. It is a sum over seeds that the journal holds already, so a round commits its own
entries and those of the W − 1 commits before it, with η β^k: replicas replay integers as ever, and a record has W times
the entries. What is cut off is β^W of the velocity. A scalar counts (1 − β^W)/(1 − β) times in all, so η is to be
about 1 − β times that of `distinct`. A client's own local steps are without momentum.
"""

from collections.abc import Sequence
from typing import ClassVar

from fedzo.errors import ConfigError
from fedzo.journal.records import Commit, Entry, Genesis, Record, Rules
from fedzo.methods.distinct import Distinct
from fedzo.methods.method import MethodReport, MethodRound, method_reports


class Momentum(Distinct):
    """See `fedzo.methods.method.Method`. Its memory is the W − 1 commits before, oldest first."""

    usual: ClassVar = {"momentum_window": 10, "momentum_decay": 0.9}
    needs_rounds = "a step is made of whole rounds"

    def check(self, rules: Rules) -> None:
        """A window of one round is no momentum."""
        super().check(rules)
        if rules.momentum_window < 2:
            raise ConfigError(
                f"option momentum-window is {rules.momentum_window}, which is method 'distinct'; give at least 2"
            )

    def memory(self, genesis: Genesis) -> tuple[Record, ...]:
        """No commits yet."""
        return ()

    def remember(self, genesis: Genesis, memory: tuple[Record, ...], record: Record) -> tuple[Record, ...]:
        """The last W − 1 commits."""
        return (*memory, record)[1 - genesis.rules.momentum_window :]

    def rate_of(self, rules: Rules, step: float, slope: float, curvature: float) -> float:
        """A scalar counts Σ β^k times in all."""
        return step / sum(rules.momentum_decay**k for k in range(rules.momentum_window))

    def aggregate(self, at: MethodRound, learning_rate: float, reports: Sequence[MethodReport]) -> tuple[Entry, ...]:
        """−η β^k (n_c/n) g / P for every direction of every client, k commits ago."""
        entries = super().aggregate(at, learning_rate, reports)
        for record in reversed(at.memory or ()):
            assert isinstance(record.body, Commit)
            learning_rate *= at.rules.momentum_decay
            before = at._replace(number=record.round)
            entries += super().aggregate(before, learning_rate, method_reports(record.body.reports))
        return entries
