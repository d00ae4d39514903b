"""`spsa15`: two-sided differences, each divided by how curved the loss is along its direction.

1.5-SPSA (Chaubard, Kochenderfer and Ré 2026, "Probe-Space Preconditioning for Fast and Stable Zero-Order Training").
One more forward pass a step, L(θ), gives the curvature along every direction:

    C_p = |L(θ + ε z_p) − 2 L(θ) + L(θ − ε z_p)| / ε²        θ ← θ − η (1/P) Σ_p g_p / max(C_p^α, 1) · z_p

α is `curvature_power`; the 1 is its authors' floor λ, so that flat directions are not stretched. C is their equation
3, the divisor equation 4 with λ_reg = 1, the step equation 5; they tie η to ε and find α = 0.1 the best. C is a
second difference: in float32 it is off by about the loss's last digit over ε², so ε should not be small. Clients'
directions are their own and averaged as in `distinct`.
"""

from collections.abc import Sequence
from typing import ClassVar

from fedzo.journal.records import Rules
from fedzo.methods.distinct import Distinct
from fedzo.methods.method import projected_gradient
from fedzo.noise import COEFFICIENT_BITS

_FLOOR = 1.0
"""Least divisor, λ."""


class Spsa15(Distinct):
    """See `fedzo.methods.method.Method`."""

    usual: ClassVar = {"curvature_power": 0.1}

    def perturbations(self, rules: Rules) -> tuple[int, ...]:
        """ε on both sides, and the unperturbed loss that all directions share."""
        return (rules.epsilon, 0, -rules.epsilon)

    def scalars(self, rules: Rules, losses: Sequence[Sequence[float]]) -> list[float]:
        """g / max(C^α, 1) of each direction."""
        epsilon = rules.epsilon / 2.0**COEFFICIENT_BITS
        found = []
        for plus, unmoved, minus in losses:
            curvature = abs(plus - 2 * unmoved + minus) / epsilon**2
            divisor = max(curvature**rules.curvature_power, _FLOOR)
            found.append(projected_gradient(plus, minus, rules.epsilon) / divisor)
        return found

    def rate_of(self, rules: Rules, step: float, slope: float, curvature: float) -> float:
        """Scalars are slopes divided by the power of their curvature."""
        return step * max(float(curvature**rules.curvature_power), _FLOOR)
