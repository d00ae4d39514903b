"""What came of a cell: its losses against rounds, forward passes and bytes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any

from fedzo.coordinator.calibration import calibration_forwards
from fedzo.errors import ConfigError
from fedzo.journal import Calibration, Commit, Evaluation, Rollback, Void, read_journal
from fedzo.journal.codec import report_size
from fedzo.run_directory import RunDirectory

from ..options import SimulateOptions
from .budget import forwards_per_client, frame_bytes, round_forwards
from .plan import Row
from .stated import Stated


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation."""

    round: int
    forwards: int
    """Of all clients in training and calibrations; evaluations cost none."""
    bytes: int
    """Up and down, all clients."""
    loss: float | None
    """Held out; None where it is not finite."""
    metric: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """Of one cell."""

    options: dict[str, Any]
    points: list[Point]
    forwards_per_client: float
    bytes_up: int
    bytes_down: int
    sources: dict[str, str] = field(default_factory=dict)
    """As `Stated`."""

    @property
    def loss(self) -> float:
        """At the end; infinite where it is not finite."""
        last = self.points[-1].loss
        return inf if last is None else last


def result_of(row: Row, options: SimulateOptions, run: RunDirectory, stated: Stated) -> Result:
    """Read a finished run; forward passes and bytes follow from its records, so a kill has cost none of them.

    Raises:
        ConfigError: nothing was evaluated.
    """
    rules = options.rules()
    each = round_forwards(row.method, rules, baseline=row.is_baseline)
    points, up, down = _of_baseline(run, each) if row.is_baseline else _of_journal(run, each)
    if not points:
        raise ConfigError(f"{run.path}: nothing was evaluated, so nothing can be compared; give --eval-data")
    per_client = forwards_per_client(row.method, points[-1].forwards, options.clients, baseline=row.is_baseline)
    return Result(stated.options, points, per_client, up, down, stated.sources)


def read_result(path: Path) -> Result | None:
    """A stored result; None where there is none."""
    if not path.exists():
        return None
    try:
        found: Mapping[str, Any] = json.loads(path.read_text())
        return Result(**{**found, "points": [Point(**point) for point in found["points"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: is no result of a cell ({error}); remove it, and the cell is run again") from error


def _of_journal(run: RunDirectory, each: int) -> tuple[list[Point], int, int]:
    contents = read_journal(run.journal)
    rules = contents.genesis.rules
    points, up, down, forwards = [], 0, 0, 0
    asked = rules.cohort
    for record in contents.records:
        body = record.body
        if isinstance(body, Commit | Void):
            forwards += each
        if isinstance(body, Commit) and rules.asynchronous:  # more reports where some came while an evaluation ran
            forwards += each // rules.commit_reports * max(0, len(body.reports) - rules.commit_reports)
        if isinstance(body, Calibration):
            forwards += calibration_forwards(rules) * rules.cohort
        if isinstance(body, Commit | Calibration):
            up += sum(map(report_size, body.reports))
        if record.entries or isinstance(body, Calibration):
            down += frame_bytes(record) * (asked if isinstance(body, Rollback) else rules.cohort)
        asked = len(body.clients) if isinstance(body, Evaluation) else rules.cohort
        if isinstance(body, Evaluation):
            points.append(Point(record.round, forwards, up + down, _finite(body.loss), body.metric))
    return points, up, down


def _of_baseline(run: RunDirectory, each: int) -> tuple[list[Point], int, int]:
    points, rounds = [], 0
    lines = run.read_metrics()
    for line in lines:
        if line["kind"] == "commit":
            rounds += 1
        else:
            sent = line["bytes_up"] + line["bytes_down"]
            points.append(Point(line["round"], rounds * each, sent, _finite(line["held_out_loss"]), line.get("metric")))
    return points, lines[-1]["bytes_up"], lines[-1]["bytes_down"]


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and isfinite(loss) else None
