"""A comparison's table: means and spreads over the seeds, for terminals, Markdown and programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, stdev
from typing import Any

from fedzo.results.plot import AXES, Curves

from .plan import Rate, Row, rate_text
from .queue import Queue
from .result import Point, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row's figures; means over `seeds`, and None where there are none yet."""

    name: str
    rate: Rate | None
    at_edge: bool
    trials: int
    tried: int
    """Trials that are finished; the best of those gave the learning rate."""
    trial_loss: float | None
    """Held-out, at the end of the best of them."""
    seeds: int
    diverged: int
    rounds: int | None
    loss: float | None
    """Held out, at the end."""
    loss_spread: float | None
    """Sample standard deviation; None for fewer than two seeds."""
    metric: float | None
    metric_spread: float | None
    forwards: int | None
    forwards_per_client: float | None
    bytes: float | None
    reached_forwards: float | None
    """In all, at the first evaluation whose mean loss is at most that of the row to reach; None where none is."""
    reached_forwards_per_client: float | None


def summary(queue: Queue) -> list[Line]:
    """All rows, in their order."""
    target = None
    for row in queue.comparison.rows:
        if row.name == queue.comparison.reach:
            points = mean_points(queue.results(row))
            target = points[-1].loss if points else None
    return [_line(queue, row, target) for row in queue.comparison.rows]


def mean_points(results: Sequence[Result]) -> list[Point]:
    """The mean over seeds after each round that all have evaluated; where one is not finite, there is none."""
    found = []
    seeds = [{point.round: point for point in result.points} for result in results]
    for number in sorted(set.intersection(*map(set, seeds))) if seeds else ():
        points = [seed[number] for seed in seeds]
        losses = [point.loss for point in points if point.loss is not None]
        metrics = [point.metric for point in points if point.metric is not None]
        found.append(
            Point(
                round=number,
                forwards=round(mean(point.forwards for point in points)),
                bytes=round(mean(point.bytes for point in points)),
                loss=mean(losses) if len(losses) == len(points) else None,
                metric=mean(metrics) if len(metrics) == len(points) else None,
            )
        )
    return found


def curves(queue: Queue) -> list[Curves]:
    """Of every row with results, the mean over seeds, as `fedzo.results.plot` draws them."""
    found = []
    for row in queue.comparison.rows:
        points = mean_points(queue.results(row))
        held_out = {axis: [(getattr(p, axis), p.loss) for p in points if p.loss is not None] for axis in AXES}
        if held_out["round"]:
            found.append(Curves(row.name, held_out, {axis: [] for axis in AXES}))
    return found


def _line(queue: Queue, row: Row, target: float | None) -> Line:
    results, tried = queue.results(row), queue.tried(row)
    losses = [result.loss for result in results if isfinite(result.loss)]
    metrics = [last.metric for result in results if (last := result.points[-1]).metric is not None]
    forwards = results[0].points[-1].forwards if results else None
    share = results[0].forwards_per_client / forwards if results and forwards else None
    reached = _reached(mean_points(results), target)
    return Line(
        name=row.name,
        rate=queue.rate(row),
        at_edge=queue.at_edge(row),
        trials=len(queue.trials(row)),
        tried=len(tried),
        trial_loss=min(tried.values(), default=None),
        seeds=len(results),
        diverged=queue.diverged(row),
        rounds=results[0].points[-1].round if results else None,
        loss=mean(losses) if losses else None,
        loss_spread=_spread(losses),
        metric=mean(metrics) if metrics else None,
        metric_spread=_spread(metrics),
        forwards=forwards,
        forwards_per_client=results[0].forwards_per_client if results else None,
        bytes=mean(result.bytes_up + result.bytes_down for result in results) if results else None,
        reached_forwards=reached,
        reached_forwards_per_client=None if reached is None or share is None else reached * share,
    )


def _reached(points: Sequence[Point], target: float | None) -> float | None:
    if target is None:
        return None
    return next((point.forwards for point in points if point.loss is not None and point.loss <= target), None)


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def cells_of(line: Line, *, metric: bool, reach: bool) -> list[str]:
    """A line as text, in the order of `headings`."""
    rate = "" if line.rate is None else rate_text(line.rate)
    if rate and line.tried < line.trials:
        rate += f" (of {line.tried} tried)"
    cells = [
        line.name,
        rate + (" (edge)" if line.at_edge else ""),
        _with_spread(line.trial_loss, None),
        str(line.seeds),
    ]
    cells.append(_with_spread(line.loss, line.loss_spread) + (f" ({line.diverged} diverged)" if line.diverged else ""))
    if metric:
        cells.append(_with_spread(line.metric, line.metric_spread))
    cells += [_number(value) for value in (line.rounds, line.forwards, line.forwards_per_client, line.bytes)]
    if reach:
        cells += [_number(line.reached_forwards), _number(line.reached_forwards_per_client)]
    return cells


def headings(*, metric: str | None, reach: str) -> list[str]:
    """Of the columns."""
    found = ["row", "learning rate", "best trial", "seeds", "held-out loss"]
    if metric is not None:
        found.append(metric)
    found += ["rounds", "forwards", "forwards a client", "bytes up and down"]
    return [*found, f"forwards to reach {reach}", "of a client"] if reach else found


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Headings and lines as a table."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def table_of(queue: Queue) -> list[list[str]]:
    """Headings and lines of a comparison, as text."""
    lines = summary(queue)
    metric = any(line.metric is not None for line in lines)
    names: dict[str, Any] = {"metric": "metric" if metric else None, "reach": queue.comparison.reach}
    return [headings(**names), *(cells_of(line, metric=metric, reach=bool(names["reach"])) for line in lines)]


def _with_spread(value: float | None, spread: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
