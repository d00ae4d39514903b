"""The divergence guard: has the loss blown up, and where was it last good?

Zeroth-order steps diverge above a learning rate that nobody knows beforehand, so a spike is an event to handle:
roll back exactly, lower the rate, go on. The guard is a fold over the journal, so a restarted coordinator decides
the same.
"""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf, isfinite, pi, sqrt
from statistics import median

from fedzo.journal.records import Rules

_LEAST_WINDOW = 3
_REPORTS = 24
"""The loss of a report is that of one batch: a median of fewer is too noisy."""
_SPREAD_OF = 24
"""Commits at most whose losses say how noisy they are."""
_STANDARD_ERRORS = 8.0
"""Of the difference of two medians, that a divergence exceeds: the best of many is low by chance, the next are not."""
_MAD = 1.4826
"""Standard deviation of a normal distribution ÷ its median absolute deviation."""
RATE_FACTOR = 0.5
"""What a divergence multiplies the learning rate by."""


def training_window(rules: Rules) -> int:
    """Commits whose median training loss is compared."""
    return max(_LEAST_WINDOW, ceil(_REPORTS / (rules.buffer_size or rules.cohort)))


@dataclass(frozen=True, slots=True)
class Divergence:
    """Go back to `position`, because of `reason`."""

    position: int
    reason: str


class LossWatch:
    """One series of losses: the best median so far, and where it was seen.

    Args:
        name: of the series.
        window: losses whose median is compared; a series of single losses is taken to be without noise.
        factor: of the best median, above which it is a divergence; 0 turns the guard off.
        position: where the series begins.
    """

    def __init__(self, name: str, window: int, factor: float, position: int = 0) -> None:
        self._name = name
        self._factor = factor
        self._window = window
        self._recent: deque[tuple[float, int]] = deque(maxlen=_SPREAD_OF if window > 1 else 1)
        self._best = inf
        self._noise = 0.0
        self.best_position = position
        """Where a divergence goes back to; before the first loss the position at which the series began."""

    def observe(self, loss: float, position: int) -> Divergence | None:
        """A loss of the state at `position`; a divergence where it is one and the guard is on."""
        if not isfinite(loss):
            return self._diverged(f"{self._name} loss is {loss}")
        self._recent.append((loss, position))
        if len(self._recent) < self._window:
            return None
        compared = list(self._recent)[-self._window :]
        now = median(seen for seen, _ in compared)
        if now < self._best:
            self._best = now
            self._noise = self._error()
            self.best_position = min(compared)[1]
        beyond_noise = self._best + _STANDARD_ERRORS * self._noise
        if now > max(self._factor * self._best, beyond_noise):
            limit = f"{self._factor:g} × {self._best:.4g}"
            also = f" and {beyond_noise:.4g}, its noise" if beyond_noise > self._factor * self._best else ""
            return self._diverged(f"{self._name} loss {now:.4g} is above {limit}{also}")
        return None

    def restart(self, position: int) -> None:
        """The state went back to `position`: forget the recent losses, and a best that was left behind with them."""
        self._recent.clear()
        if self.best_position > position:
            self._best = inf
            self.best_position = position

    def _error(self) -> float:
        """Standard error of the difference of two medians, from losses next to each other: no trend is in it."""
        losses = [loss for loss, _ in self._recent]
        steps = [abs(later - loss) for loss, later in pairwise(losses)]
        deviation = _MAD * median(steps) / sqrt(2) if steps else 0.0
        return sqrt(2) * sqrt(pi / 2 / self._window) * deviation

    def _diverged(self, reason: str) -> Divergence | None:
        return Divergence(self.best_position, reason) if self._factor else None
