"""The learning rate that finds itself: from how curved the loss is where the run stands.

A step along N directions, θ ← θ − η (1/N) Σ g z with g = zᵀ∇L and z of unit variance, changes a quadratic loss by

    −η ‖∇L‖² + ½ η² ‖∇L‖² (tr(H)/N + λ)        λ at most the largest eigenvalue of the Hessian H, in expectation

so it descends below η = 2 / (tr(H)/N + λ), and what the noise of directions and data leaves behind grows with η. The
trace shows in second differences of the loss, which cost one forward pass beside the two that a slope takes:

    C = (L(θ+εz) − 2 L(θ) + L(θ−εz)) / ε² ≈ zᵀHz        whose mean is tr(H)

Taken is the median of |C| over all directions and clients and one standard deviation more, since a few samples may
happen to be flat; the deviation is that of the median of deviations, so that a minority of clients hardly moves either;
no less than what rounding makes of a loss; and for λ, which does not show, tr(H)/64. The rate is an eighth of the
limit.

The curvature rises while the loss falls, most of all in the first rounds, and what the noise of a step leaves behind
is weighed by the curvature to come. So it is measured again and again, the largest that was found counts, and after the
k-th calibration it is taken to rise by the share 1/k of itself still. The slope that methods of a constant step length
need is the median of the first three.
"""

from collections.abc import Sequence
from math import ceil
from statistics import median
from typing import NamedTuple

import numpy as np

from fedzo.journal.records import ClientReport, Rules
from fedzo.methods.method import Method, projected_gradient
from fedzo.noise import COEFFICIENT_BITS

SHARE = 1 / 8
"""The rate in units of the largest that descends on a quadratic."""
RANK = 64
"""Ratio of the trace to the largest eigenvalue that is reckoned with; it limits what averaging directions gains."""
SAMPLES = 8
"""Fewest directions that a calibration rests on, over all clients."""
SLOPES = 3
"""The first calibrations whose slopes count."""
SECOND = 5
"""Rounds after which the first calibration is repeated; each later one comes when the rounds have doubled."""
MOST = 1e3
"""Largest rate that an option may have too."""
_LAST_DIGIT = 2.0**-24
"""Rounding of a float32, relative; differences below what it makes of a loss are taken for as much."""
_GAUSSIAN_MAD = 1.4826
"""Standard deviation over the median of absolute deviations, of a normal distribution."""


def calibration_directions(rules: Rules) -> int:
    """Directions that each client evaluates."""
    return max(rules.directions, ceil(SAMPLES / rules.cohort))


def most_directions(rules: Rules) -> int:
    """Directions that a plan of the run may ask a client for."""
    training = rules.directions * rules.local_steps
    return max(training, calibration_directions(rules)) if rules.calibrated else training


def calibration_forwards(rules: Rules) -> int:
    """Forward passes of one client: two for each direction, and one at the weights themselves."""
    return 2 * calibration_directions(rules) + 1


def next_calibration(calibrated: int | None) -> int:
    """Rounds done when a calibration is due, after the last one was made with `calibrated` rounds done."""
    return 0 if calibrated is None else max(SECOND, 2 * calibrated)


def calibration_due(rounds_done: int, calibrated: int | None) -> bool:
    """Is a calibration due, after the last one was made with `calibrated` rounds done?"""
    return rounds_done >= next_calibration(calibrated)


def calibration_scalars(epsilon: int, losses: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """What a client reports: the slope along each direction, then the curvature along each; float32 values.

    Args:
        epsilon: units of 2⁻⁴⁰.
        losses: of each direction at ε, 0 and −ε.
    """
    step = epsilon / 2.0**COEFFICIENT_BITS
    slopes = [projected_gradient(plus, minus, epsilon) for plus, _, minus in losses]
    curvatures = [(plus - 2 * unmoved + minus) / step**2 for plus, unmoved, minus in losses]
    return tuple(float(np.float32(scalar)) for scalar in slopes + curvatures)


class Measured(NamedTuple):
    """What calibrations found."""

    curvature: float
    """tr(H), and the uncertainty of its estimate; the largest."""
    slopes: tuple[float, ...]
    """Of each calibration, standard deviation of zᵀ∇L, as of a normal distribution."""

    def followed_by(self, later: "Measured") -> "Measured":
        """Both together."""
        return Measured(max(self.curvature, later.curvature), self.slopes + later.slopes)

    def forgetting_curvature(self) -> "Measured":
        """What stays of it where the state went back: how many there were, and the slopes at the beginning."""
        return self._replace(curvature=0.0)

    @property
    def curvature_to_come(self) -> float:
        """What the run is expected to reach."""
        return self.curvature * (1 + 1 / len(self.slopes))

    @property
    def usual_slope(self) -> float:
        """At the beginning of the run, of which a single calibration knows little."""
        return median(self.slopes[:SLOPES])


def measured(rules: Rules, reports: Sequence[ClientReport]) -> Measured:
    """What at least one client reported."""
    count = calibration_directions(rules)
    slopes = [abs(scalar) for report in reports for scalar in report.projected_gradients[:count]]
    curvatures = [abs(scalar) for report in reports for scalar in report.projected_gradients[count:]]
    last_digit = _LAST_DIGIT * max(1.0, median(abs(report.loss) for report in reports))
    epsilon = rules.epsilon / 2.0**COEFFICIENT_BITS
    middle = median(curvatures)
    upper = middle + _GAUSSIAN_MAD * median(abs(curvature - middle) for curvature in curvatures)
    slope = max(_GAUSSIAN_MAD * median(slopes), last_digit / epsilon)
    return Measured(max(upper, 4 * last_digit / epsilon**2), (slope,))


def calibrated_rate(method: Method, rules: Rules, found: Measured, clients: int) -> float:
    """The learning rate that follows, where so many clients' reports make a step."""
    directions = method.averaged_directions(rules, rules.buffer_size if rules.asynchronous else clients)
    to_come = found.curvature_to_come
    step = SHARE * 2 / (to_come / directions + to_come / RANK)
    return min(method.rate_of(rules, step, found.usual_slope, found.curvature), MOST)
