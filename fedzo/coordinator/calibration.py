"""The learning rate that finds itself: from how curved the loss is where the run stands.

A step along N directions, θ ← θ − η (1/N) Σ g z with g = zᵀ∇L and z gaussian, changes a quadratic loss of Hessian H by

    −η ‖∇L‖² + ½ η² ‖∇L‖² (tr(H)/N + (1 + 1/N) λ)      λ at most the largest eigenvalue of H, in expectation

so it descends below η = 2 / (tr(H)/N + (1 + 1/N) λ), and what the noise of directions and data leaves behind grows with
η. What is needed of H shows in second differences of the loss (Hutchinson's estimator), which cost one forward pass
beside the two that a slope takes:

    C = (L(θ+εz) − 2 L(θ) + L(θ−εz)) / ε² ≈ zᵀHz        of mean tr(H) and variance 2 ‖H‖²

‖H‖, the root of the sum of all squared eigenvalues, is no less than the largest and stands for λ. (With Rademacher
directions H's diagonal has no part in the variance; where there are many weights it is a small part.) Estimates go over
all directions and clients; a value further from their median than three standard deviations, by the median of
deviations, counts as one that far, so that a minority of clients moves them little.

The rate is a share of the limit, and the longer the run, the smaller the share: noise that a short run has no time to
suffer from decides how a long one ends. The trace rises while the loss falls, most of all in the first rounds. So it is
measured again and again, the last three times count, and after the k-th it is expected to rise by the share 1/k of
itself still; ‖H‖, which varies more from sample to sample than it changes, is that of all. The slope that methods of a
constant step length need is that of the first three.
"""

from collections.abc import Sequence
from math import ceil, hypot, sqrt
from statistics import fmean, median, variance
from typing import NamedTuple

import numpy as np

from fedzo.journal.records import ClientReport, Rules
from fedzo.methods.method import Method, projected_gradient
from fedzo.noise import COEFFICIENT_BITS

HORIZON = 1 / 4
"""The rate falls with the run's rounds by this power of them; measured (docs/results.md)."""
MOST_SHARE = 1 / 2
"""Of the limit: here a single step descends most."""
SAMPLES = 8
"""Fewest directions that a calibration rests on, over all clients."""
FEW = 3
"""Calibrations over which is averaged: the first ones for slopes, the last ones for traces."""
SECOND = 5
"""Rounds after which the first calibration is repeated; each later one comes when the rounds have doubled."""
MOST = 1e3
"""Largest rate that an option may have too."""
_LAST_DIGIT = 2.0**-24
"""Rounding of a float32, relative; differences below what it makes of a loss are taken for as much."""
_GAUSSIAN_MAD = 1.4826
"""Standard deviation over the median of absolute deviations, of a normal distribution."""
_FAR = 3
"""Standard deviations from the middle beyond which a value counts as that far."""


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
    """What calibrations found, one value of each; of curvature since the last roll-back."""

    slopes: tuple[float, ...]
    """Mean squares of zᵀ∇L, of the whole run."""
    traces: tuple[float, ...]
    """tr(H)."""
    norms: tuple[float, ...]
    """‖H‖²."""

    def followed_by(self, later: "Measured") -> "Measured":
        """Both together."""
        return Measured(*(mine + its for mine, its in zip(self, later, strict=True)))

    def forgetting_curvature(self) -> "Measured":
        """What stays of it where the state went back: how many there were, and the slopes at the beginning."""
        return Measured(self.slopes, (), ())

    @property
    def slope(self) -> float:
        """Root mean square at the beginning of the run, of which a single calibration knows little."""
        return sqrt(fmean(self.slopes[:FEW]))

    @property
    def trace(self) -> float:
        """Of late; 0 where the loss curves downwards, which limits no step."""
        return max(0.0, fmean(self.traces[-FEW:]))

    @property
    def norm(self) -> float:
        """‖H‖."""
        return sqrt(fmean(self.norms))

    def limit(self, directions: int) -> float:
        """The largest rate that descends in expectation where so many directions are averaged, the run to come."""
        trace_to_come = self.trace * (1 + 1 / len(self.slopes))
        return 2 / (trace_to_come / directions + self.norm * (1 + 1 / directions))


def measured(rules: Rules, reports: Sequence[ClientReport]) -> Measured:
    """What at least one client reported."""
    count = calibration_directions(rules)
    epsilon = rules.epsilon / 2.0**COEFFICIENT_BITS
    last_digit = _LAST_DIGIT * max(1.0, median(abs(report.loss) for report in reports))
    slopes = _brought_near([g for report in reports for g in report.projected_gradients[:count]], 0.0)
    curvatures = [c for report in reports for c in report.projected_gradients[count:]]
    curvatures = _brought_near(curvatures, median(curvatures))
    norm = variance(curvatures) / 2 if len(curvatures) > 1 else curvatures[0] ** 2
    return Measured(
        slopes=(max(fmean(slope**2 for slope in slopes), (last_digit / epsilon) ** 2),),
        traces=(fmean(curvatures),),
        norms=(max(norm, (4 * last_digit / epsilon**2) ** 2),),
    )


def _brought_near(values: Sequence[float], middle: float) -> list[float]:
    """Values too far from the middle, as far as that still counts."""
    far = _FAR * _GAUSSIAN_MAD * median(abs(value - middle) for value in values)
    return [min(max(value, middle - far), middle + far) for value in values]


def share(rounds: int) -> float:
    """The rate in units of the largest that descends on a quadratic, in a run of so many rounds."""
    return min(MOST_SHARE, float(rounds**-HORIZON))


def calibrated_rate(method: Method, rules: Rules, found: Measured, clients: int) -> float:
    """The learning rate that follows, where so many clients' reports make a step."""
    directions = method.averaged_directions(rules, rules.buffer_size if rules.asynchronous else clients)
    step = share(rules.rounds) * found.limit(directions)
    curvature = hypot(found.trace, sqrt(2) * found.norm)
    return min(method.rate_of(rules, step, found.slope, curvature), MOST)
