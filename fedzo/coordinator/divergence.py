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

from fedzo.journal.records import Evaluation, Rules

_LEAST_WINDOW = 3
_REPORTS = 24
"""The loss of a report is that of one batch: a median of fewer is too noisy."""
_SPREAD_OF = 24
"""Commits at most whose losses say how noisy they are."""
_STANDARD_ERRORS = 8.0
"""Of the difference of two medians, that a divergence exceeds: the best of many is low by chance, the next are not."""
_MAD = 1.4826
"""Standard deviation of a normal distribution ÷ its median absolute deviation."""
_DOUBTED = 5
"""Commits in a row whose training losses can bring an evaluation forward."""
_REFUSED = 3
"""Rounds in a row whose entries the range guard refuses that can, at first."""
_RATE_FACTOR = 0.5
"""What a divergence multiplies the learning rate by; the k-th of a row by this to the power k."""
_LONGEST_ROW = 3
"""The largest k, after which it is by this factor again: a rate that is 64 times too large is gone by then."""


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
    """Should the held-out losses be looked at before their time?

    Training losses are noisy and of few clients, and in a run that diverges from its first step there is no good one to
    compare them with. So they only raise a doubt, and most clients' held-out losses have to share it. One that they do
    not share is not raised again soon.

    Args:
        factor: of what was good, above which a loss is in doubt; 0 never doubts.
        early: there may be evaluations before their time.
    """

    def __init__(self, factor: float, *, early: bool) -> None:
        self._factor = factor
        self._early = early
        self._recent: deque[float] = deque(maxlen=_DOUBTED)
        self._refused = 0
        self._patience = _REFUSED
        self._good = -inf
        """The highest loss that an evaluation let pass: of a middling client, or of all those commits at the time."""
        self._first: dict[int, float] = {}
        """Each client's held-out loss when it evaluated first."""
        self._least: dict[int, float] = {}
        """And at its best."""
        self._fell_at = 0
        """Position of the last state that was some client's best."""

    def committed(self, loss: float) -> None:
        """A commit's training loss."""
        self._recent.append(loss)
        self._refused = 0

    def refused(self) -> None:
        """The range guard made a round void."""
        self._refused += 1

    def went_back(self, position: int) -> None:
        """A divergence was undone, and a best that came after the position with it."""
        self._recent.clear()
        self._refused = 0
        if position < self._fell_at:
            self._least, self._fell_at = dict(self._first), position

    @property
    def stands(self) -> bool:
        """Is there reason to look?"""
        if not (self._factor and self._early and self._least):
            return False
        high = len(self._recent) == _DOUBTED and min(self._recent) > self._factor * self._good
        return high or self._refused >= self._patience

    def is_shared(self, evaluation: Evaluation) -> bool:
        """Are most clients worse off than `factor` allows, of those that were asked before, who are not the fewer?"""
        known = [(now.loss, self._least[now.client]) for now in evaluation.clients if now.client in self._least]
        worse = sum(not loss <= self._factor * least for loss, least in known)
        return 2 * worse > len(known) and 2 * len(known) >= len(evaluation.clients)

    def passed(self, evaluation: Evaluation, position: int) -> None:
        """It shows no divergence of the state at a position."""
        losses = {client.client: client.loss for client in evaluation.clients if isfinite(client.loss)}
        fell = {client: loss for client, loss in losses.items() if loss < self._least.get(client, inf)}
        if fell:
            self._first = losses | self._first
            self._least |= fell
            self._fell_at = position
        if losses:
            self._good = max(self._good, median(losses.values()))
        if self._recent and self._least:
            self._good = max(self._good, min(self._recent))
        if self._refused >= self._patience:
            self._patience *= 2


class Setbacks:
    """Roll-backs one soon after the other: a rate so far off is lowered by more each time, up to three times.

    Args:
        window: records that have to stand between two roll-backs, else the second is of the first's row.
        soon: records after which it is no more.
    """

    def __init__(self, window: int, soon: int) -> None:
        self._window = window
        self._soon = soon
        self._last: int | None = None
        self._count = 0

    def add(self, target: int, position: int) -> None:
        """A roll-back to `target`, with which the journal has `position` records."""
        self._count = self._next(target, position)
        self._last = position

    def scale(self, target: int, position: int) -> float:
        """What such a roll-back multiplies the learning rate by."""
        count = self._next(target, position)
        return float(_RATE_FACTOR**count) if count <= _LONGEST_ROW else _RATE_FACTOR

    def _next(self, target: int, position: int) -> int:
        if self._last is None or target - self._last >= self._window or position - self._last > self._soon:
            return 1
        return self._count + 1
