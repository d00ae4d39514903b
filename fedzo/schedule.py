"""Learning-rate schedules: pure functions of the round, so that a replay needs nothing else."""

from fedzo.journal.records import Rules

SCHEDULES = ("constant", "linear")


def scheduled_rate(rules: Rules, round_number: int) -> float:
    """The rate of a round, counted from 1. `linear` falls from the full rate in round 1 towards 0 after the last."""
    if rules.schedule == "linear":
        return rules.learning_rate * (1 - (round_number - 1) / rules.rounds)
    return rules.learning_rate
