"""Learning-rate schedules: pure functions of the round, so that a replay needs nothing else."""

from math import cos, pi

from fedzo.journal.records import Rules

SCHEDULES = ("constant", "linear", "cosine")


def scheduled_rate(rules: Rules, full: float, round_number: int) -> float:
    """The rate of a round, counted from 1, where `full` is the highest.

    It rises by equal steps over the warm-up, whose last round has the full rate. Of the rounds after it the first has
    the full rate too, and `linear` and `cosine` (half a period) fall from there towards 0 after the last.
    """
    warmup = rules.warmup_rounds
    if round_number <= warmup:
        return full * (round_number / warmup)
    done = (round_number - 1 - warmup) / max(rules.rounds - warmup, 1)
    match rules.schedule:
        case "linear":
            return full * (1 - done)
        case "cosine":
            return full * ((1 + cos(pi * done)) / 2)
        case _:
            return full
