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
_DOUBTED = 3
"""Commits whose median training loss can bring an evaluation forward."""
REFUSED = 3
"""Rounds in a row whose entries the range guard refuses: a divergence. Of fewer, one client may be the cause."""
RATE_FACTOR = 0.5
"""What a divergence multiplies the learning rate by; the k-th in a row from the same place, by this to the power k."""
MOST_IN_A_ROW = 8
"""The largest k, so that a rate does not vanish."""


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
            return self.diverged(f"{self._name} loss is {loss}")
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
            return self.diverged(f"{self._name} loss {now:.4g} is above {limit}{also}")
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

    def diverged(self, reason: str) -> Divergence | None:
        """One that shows otherwise; None where the guard is off."""
        return Divergence(self.best_position, reason) if self._factor else None


class Doubt:
    """Should the held-out loss be looked at before its time?

    Training losses are noisy, and in a run that diverges from its first step there is no good one to compare them with.
    The held-out loss decides, so that a doubt may be wrong: it only costs an evaluation, and what was doubted once, and
    was none, is doubted no more.

    Args:
        factor: of the highest loss that an evaluation has found to be no divergence; 0 never doubts.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._recent: deque[float] = deque(maxlen=_DOUBTED)
        self._good = -inf

    def observe(self, loss: float) -> None:
        """Of a commit."""
        self._recent.append(loss)

    def evaluated(self, held_out: float) -> None:
        """This held-out loss is no divergence."""
        self._good = max(self._good, held_out, median(self._recent) if self._recent else -inf)

    def restart(self) -> None:
        """The state went back."""
        self._recent.clear()

    @property
    def stands(self) -> bool:
        """Is there reason to look?"""
        enough = len(self._recent) == _DOUBTED and self._factor > 0 and isfinite(self._good)
        return enough and median(self._recent) > self._factor * self._good


class Setbacks:
    """How often in a row the state went back to the same place: a rate so far off is lowered by more each time.

    Args:
        window: records that have to stand between two roll-backs for the second to be the first of a row.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._last: int | None = None
        self._count = 0

    def add(self, target: int, position: int) -> None:
        """A roll-back, the record before `position`, went to `target`."""
        self._count = self._next(target)
        self._last = position

    def scale(self, target: int) -> float:
        """What a roll-back to there multiplies the learning rate by."""
        return float(RATE_FACTOR ** self._next(target))

    def _next(self, target: int) -> int:
        again = self._last is not None and target - self._last < self._window
        return min(self._count + 1, MOST_IN_A_ROW) if again else 1
