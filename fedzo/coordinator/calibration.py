"""The learning rate that finds itself: from how curved the loss is where the run stands.

A step along N directions, θ ← θ − η (1/N) Σ g z with g = zᵀ∇L and z gaussian, changes a quadratic loss of Hessian H by

    −η ‖∇L‖² + ½ η² ‖∇L‖² (tr(H)/N + (1 + 1/N) λ)      λ at most the largest eigenvalue of H, in expectation

so, the noise of batches apart, it descends below η = 2 / (tr(H)/N + (1 + 1/N) λ), and what the noise of directions and
data leaves behind grows with η. What is needed of H shows in second differences of the loss (Hutchinson's estimator),
which cost one forward pass beside the two that a slope takes:

    C = (L(θ+εz) − 2 L(θ) + L(θ−εz)) / ε² ≈ zᵀHz        of mean tr(H) and variance 2 ‖H‖²

‖H‖, the root of the sum of all squared eigenvalues, is no less than the largest and stands for λ. With Rademacher
directions H's diagonal has no part in the variance, so ‖H‖ is taken for no less than tr(H)/√d, with d weights, either;
where clients differ in their traces that counts as well, which errs on the safe side. Differences of the loss below its
last digit count as that digit.

Estimates go over all directions and clients. A value further from their median than three standard deviations, by the
median of deviations, counts as one that far: one client of eight moves the slope, or ‖H‖, by a factor below 2, three
the slope by about 4 and ‖H‖, which lowers the rate, by up to 7. Nor does one calibration count for more than three
times the median of those it is averaged with.

The rate is a share of the limit, and the longer the run, the smaller the share: noise that a short run has no time to
suffer from decides how a long one ends. The trace rises while the loss falls, most of all in the first rounds. So it is
measured again and again, the last three times count, and after the k-th it is expected to rise by the share 1/k of
itself still; ‖H‖, which varies more from sample to sample than it changes, is that of all. The slope that methods of a
constant step length need is that of the first three.
"""

from collections.abc import Sequence
from math import ceil, hypot, sqrt
from statistics import fmean, median, median_high, median_low, variance
from typing import NamedTuple

import numpy as np

from fedzo.journal.records import ClientReport, Genesis, Rules
from fedzo.methods.method import Method, projected_gradient
from fedzo.noise import COEFFICIENT_BITS

HORIZON = 1 / 4
"""The rate falls with the run's rounds by this power of them, as tuned rates do (docs/results.md)."""
MOST_SHARE = 1 / 2
"""Of the limit: here a single step descends most."""
SAMPLES = 8
"""Fewest directions that a calibration rests on, over all clients."""
FEW = 3
"""Calibrations over which is averaged: the first ones for slopes, the last ones for traces."""
SECOND = 5
"""Rounds after which the first calibration is repeated, or as many as evaluate so many times its directions; each later
one comes when the rounds have doubled."""
MOST = 1e3
"""Largest rate that an option may have too."""
_LAST_DIGIT = 2.0**-24
"""Rounding of a float32, relative; differences below what it makes of a loss are taken for as much."""
_GAUSSIAN_MAD = 1.4826
"""Standard deviation over the median of absolute deviations, of a normal distribution."""
_NORMAL_DEVIATION = 1.2533
"""Standard deviation over the mean of absolute deviations, likewise."""
_FAR = 3
"""Standard deviations from the middle beyond which a value counts as that far; of calibrations, medians."""
_NO_FREEDOM = 1e-9
"""Weight of a single direction, whose stand-in for a variance counts where there is nothing else."""
_MOST_LOSS = 3e38
"""A loss beyond, which no float32 holds, counts as this."""


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


def next_calibration(rules: Rules, calibrated: int | None) -> int:
    """Rounds done when a calibration is due, after the last one was made with `calibrated` rounds done."""
    if calibrated is None:
        return 0
    as_much = ceil(SECOND * calibration_directions(rules) / (rules.directions * rules.local_steps))
    return max(SECOND, as_much, 2 * calibrated)


def calibration_due(rules: Rules, rounds_done: int, calibrated: int | None) -> bool:
    """Is a calibration due, after the last one was made with `calibrated` rounds done?"""
    return rounds_done >= next_calibration(rules, calibrated)


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


class Curvature(NamedTuple):
    """What a calibration found of zᵀHz."""

    directions: int
    """Of all clients that reported."""
    trace: float
    """Mean, tr(H); no less than 0, since where the loss curves downwards no step is limited."""
    square: float
    """Half of the variance, ‖H‖²; of a single direction, which has none, the square of the trace, which is no less."""


class Measured(NamedTuple):
    """What calibrations found."""

    slopes: tuple[float, ...]
    """Mean squares of zᵀ∇L, of all calibrations of the run."""
    curvatures: tuple[Curvature, ...]
    """Of those since the last roll-back."""

    def followed_by(self, later: "Measured") -> "Measured":
        """Both together."""
        return Measured(self.slopes + later.slopes, self.curvatures + later.curvatures)

    def forgetting_curvature(self) -> "Measured":
        """What stays of it where the state went back: how many there were, and the slopes at the beginning."""
        return Measured(self.slopes, ())

    @property
    def slope(self) -> float:
        """Root mean square at the beginning of the run, of which a single calibration knows little."""
        first = self.slopes[:FEW]
        most = _FAR**2 * median_low(first)
        return sqrt(fmean(min(square, most) for square in first))

    @property
    def trace(self) -> float:
        """tr(H), of late."""
        last = self.curvatures[-FEW:]
        most = _FAR * median_high(found.trace for found in last)
        return fmean((min(found.trace, most) for found in last), weights=[found.directions for found in last])

    def norm(self, weights: int) -> float:
        """‖H‖, of so many weights."""
        most = _FAR**2 * median_high(found.square for found in self.curvatures)
        freedom = [max(found.directions - 1, _NO_FREEDOM) for found in self.curvatures]
        square = fmean((min(found.square, most) for found in self.curvatures), weights=freedom)
        return max(sqrt(square), self.trace / sqrt(weights))

    def limit(self, directions: int, weights: int) -> float:
        """The largest rate that descends in expectation where so many directions are averaged, the run to come."""
        trace_to_come = self.trace * (1 + 1 / len(self.slopes))
        return 2 / (trace_to_come / directions + self.norm(weights) * (1 + 1 / directions))


def measured(rules: Rules, reports: Sequence[ClientReport]) -> Measured:
    """What at least one client reported."""
    count = calibration_directions(rules)
    epsilon = rules.epsilon / 2.0**COEFFICIENT_BITS
    last_digit = _LAST_DIGIT * median(min(max(1.0, abs(report.loss)), _MOST_LOSS) for report in reports)
    slopes = _brought_near([slope for report in reports for slope in report.projected_gradients[:count]], 0.0)
    curvatures = [curvature for report in reports for curvature in report.projected_gradients[count:]]
    curvatures = _brought_near(curvatures, median(curvatures))
    slope = max(fmean(slope**2 for slope in slopes), (last_digit / epsilon) ** 2)
    trace = max(0.0, fmean(curvatures))
    square = variance(curvatures) / 2 if len(curvatures) > 1 else trace**2
    return Measured((slope,), (Curvature(len(curvatures), trace, max(square, (4 * last_digit / epsilon**2) ** 2)),))


def _brought_near(values: Sequence[float], middle: float) -> list[float]:
    """Values too far from the middle, as far as that still counts."""
    deviations = [abs(value - middle) for value in values]
    deviation = _GAUSSIAN_MAD * median(deviations) or _NORMAL_DEVIATION * fmean(deviations)
    return [min(max(value, middle - _FAR * deviation), middle + _FAR * deviation) for value in values]


def share(rounds: int) -> float:
    """The rate in units of the largest that descends on a quadratic, in a run of so many rounds."""
    return min(MOST_SHARE, float(rounds**-HORIZON))


def calibrated_rate(method: Method, genesis: Genesis, found: Measured, clients: int) -> float:
    """The learning rate that follows, where so many clients' reports make a step."""
    rules = genesis.rules
    directions = method.averaged_directions(rules, rules.buffer_size if rules.asynchronous else clients)
    weights = genesis.manifest.elements
    step = share(rules.rounds) * found.limit(directions, weights)
    curvature = hypot(found.trace, sqrt(2) * found.norm(weights))
    return min(method.rate_of(rules, step, found.slope, curvature), MOST)
