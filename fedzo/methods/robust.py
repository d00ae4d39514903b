"""Aggregation that a share of hostile clients cannot carry off, of scalars that are comparable: one vector a client,
along the same directions for all.

    clip           every scalar brought into ±C, before anything is made of it
    median         of each direction's scalars (Yin et al. 2018)
    trimmed-mean   of each direction's, less the ⌈βn⌉ largest and as many smallest (the same)
    krum           the vector of the client whose n − f − 2 nearest others are nearest, f = ⌈βn⌉ (Blanchard et al. 2017)

β is the share of clients that may be hostile, n the clients that reported. Where too few reported for that, as many are
trimmed as leave one, and at least one neighbour counts.
"""

from collections.abc import Callable, Sequence
from math import ceil
from statistics import median

import numpy as np

from fedzo.errors import ConfigError
from fedzo.journal.records import Rules

Vectors = Sequence[Sequence[float]]
"""Scalars of each client, in order of the directions."""


def clipped(rules: Rules, scalars: Sequence[float]) -> tuple[float, ...]:
    """float32 values within ±`clip`; as they are where that is 0."""
    if not rules.clip:
        return tuple(scalars)
    most = float(np.float32(rules.clip))
    return tuple(min(max(scalar, -most), most) for scalar in scalars)


def combine(rules: Rules, vectors: Vectors) -> list[float]:
    """One scalar a direction."""
    return AGGREGATIONS[rules.aggregation](vectors, rules.tolerate)


def medians(vectors: Vectors, tolerate: float) -> list[float]:
    """The median of each direction; of an even number the mean of the middle two."""
    return [median(column) for column in zip(*vectors, strict=True)]


def trimmed_means(vectors: Vectors, tolerate: float) -> list[float]:
    """The mean of each direction without its extremes."""
    count = len(vectors)
    cut = min(_hostile(count, tolerate), (count - 1) // 2)
    kept = [sorted(column)[cut : count - cut] for column in zip(*vectors, strict=True)]
    return [sum(column) / len(column) for column in kept]


def krum(vectors: Vectors, tolerate: float) -> list[float]:
    """The vector of one client, the first of those that score alike."""
    count = len(vectors)
    near = max(1, count - _hostile(count, tolerate) - 2)
    scores = []
    for k, own in enumerate(vectors):
        distances = sorted(_distance(own, other) for j, other in enumerate(vectors) if j != k)
        scores.append(sum(distances[:near]))
    return list(vectors[scores.index(min(scores))])


AGGREGATIONS: dict[str, Callable[[Vectors, float], list[float]]] = {
    "median": medians,
    "trimmed-mean": trimmed_means,
    "krum": krum,
}
USUALLY_TOLERATED = {"trimmed-mean": 0.25, "krum": 0.25}
"""β of those that need it, where nothing is said."""


def check_aggregation(rules: Rules) -> None:
    """Raises ConfigError for an aggregation that is unknown, or whose share of hostile clients is missing or idle."""
    if rules.aggregation and rules.aggregation not in AGGREGATIONS:
        raise ConfigError(
            f"aggregation {rules.aggregation!r} is unknown; choose one of: mean, {', '.join(AGGREGATIONS)}"
        )
    usual = USUALLY_TOLERATED.get(rules.aggregation)
    if usual is not None and not rules.tolerate:
        raise ConfigError(f"option tolerate is 0, but aggregation {rules.aggregation!r} needs it; {usual} is usual")
    if rules.tolerate and usual is None:
        raise ConfigError(
            f"option tolerate is {rules.tolerate}, but aggregation {rules.aggregation or 'mean'!r} has no use for it; "
            "leave it 0"
        )


def _hostile(count: int, tolerate: float) -> int:
    return ceil(round(tolerate * count, 9))


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
