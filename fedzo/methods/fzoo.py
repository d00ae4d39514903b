"""`fzoo`: one-sided differences along a batch of directions, divided by the spread of their losses.

FZOO (Dang et al. 2025, "FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models towards Adam-Scale
Speed"). A client evaluates l₀ = L(θ) and l_p = L(θ + ε z_p) for P Rademacher directions: P + 1 forward
passes instead of 2P. With σ the sample standard deviation of l_1 … l_P,

    g = (1/P) Σ_p (l_p − l₀)/ε · z_p        θ ← θ − η g / σ

Its authors' program (DKmiyan/FZOO, `zo_step`) leaves the 1/ε out, so its η is 1/ε times ours, and takes σ with 1/P
where the paper has 1/(P − 1). By the paper's proposition 3.2 σ is about ε‖∇L‖, so this is normalised SGD: the step's
length does not depend on how steep the loss is, and η is about ε times the length that a step is to have. Each client
divides by its own σ before it reports; its directions are its own and clients are averaged as in `distinct`.
"""

from collections.abc import Sequence
from statistics import stdev
from typing import ClassVar

from fedzo.errors import ConfigError
from fedzo.journal.records import Rules
from fedzo.methods.distinct import Distinct
from fedzo.noise import COEFFICIENT_BITS


class Fzoo(Distinct):
    """See `fedzo.methods.method.Method`."""

    usual: ClassVar = {"directions": 8}

    def check(self, rules: Rules) -> None:
        """One loss has no spread."""
        super().check(rules)
        if rules.directions < 2:
            raise ConfigError(
                f"option directions is {rules.directions}, but method {rules.method!r} divides by the spread of "
                "several losses; give at least 2, 8 is usual"
            )

    def perturbations(self, rules: Rules) -> tuple[int, ...]:
        """ε, and the unperturbed loss that all directions share."""
        return (rules.epsilon, 0)

    def scalars(self, rules: Rules, losses: Sequence[Sequence[float]]) -> list[float]:
        """(l_p − l₀) / (ε σ) of each direction; 0 where all losses are the same, which say nothing of a direction."""
        spread = stdev(moved for moved, _ in losses)
        if not spread:
            return [0.0] * len(losses)
        scale = rules.epsilon / 2.0**COEFFICIENT_BITS * spread
        return [(moved - unmoved) / scale for moved, unmoved in losses]

    def rate_of(self, rules: Rules, step: float, slope: float, curvature: float) -> float:
        """σ is about ε times the slope. Half of that: of few losses σ is uncertain, and in a run it falls."""
        return step * slope * rules.epsilon / 2.0**COEFFICIENT_BITS / 2
