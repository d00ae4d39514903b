"""The simulator: carries out the coordinator's decisions on one machine, in simulated time.

All clients share one replica, since each holds the same integers and its perturbations and local steps are
overlays; so a thousand clients cost the memory of one. A record is durable in the journal before the replica moves.
"""

import heapq
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Self

from fedzo.coordinator import (
    Announce,
    Append,
    Appended,
    Connected,
    Coordinator,
    Decision,
    Event,
    Finish,
    Plan,
    Purpose,
    Refuse,
    Report,
    Tick,
)
from fedzo.errors import ProtocolError
from fedzo.journal import ClientReport, Journal, Record
from fedzo.journal.codec import report_size
from fedzo.noise.draws import fault_draws
from fedzo.run_directory import RunDirectory
from fedzo.state.statefile import save_state
from fedzo.tasks.dealing import client_names
from fedzo.worker import Worker

from .attacks import Attack
from .options import SimulateOptions
from .setup import Setting


@dataclass(slots=True)
class Progress:
    """What a run has taken so far, over all its resumes; work on what no record came of is not in it."""

    earlier_s: float = 0.0
    """Seconds before this process."""
    started: float = field(default_factory=time.monotonic)
    forwards: int = 0
    bytes_up: int = 0
    """Reports of training rounds, as protobuf."""
    bytes_down: int = 0
    """Journal frames, once for each client of the cohort."""

    @classmethod
    def resumed(cls, metrics: Iterable[Mapping[str, Any]]) -> Self:
        """Go on from the last metrics line that has what was measured; lines mended after a kill have not."""
        measured = [line for line in metrics if "forwards" in line]
        if not measured:
            return cls()
        last = measured[-1]
        return cls(
            earlier_s=last["seconds"],
            forwards=last["forwards"],
            bytes_up=last["bytes_up"],
            bytes_down=last["bytes_down"],
        )

    def measured(self) -> dict[str, float]:
        """What a metrics line states of it; `resumed` reads it again."""
        return {
            "seconds": round(self.seconds, 3),
            "forwards": self.forwards,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }

    @property
    def seconds(self) -> float:
        """Seconds spent running, not those between a kill and the resume."""
        return self.earlier_s + time.monotonic() - self.started


Watcher = Callable[[int, Record, Progress], None]


class Simulator:
    """One simulation.

    Args:
        options: as given.
        setting: at the journal's position.
        journal: open for writing.
        run: where metrics and state go.
        progress: what the run has taken before.
        watch: called after each record.
    """

    def __init__(
        self,
        options: SimulateOptions,
        setting: Setting,
        journal: Journal,
        run: RunDirectory,
        progress: Progress,
        watch: Watcher,
    ) -> None:
        self._options = options
        self._setting = setting
        self._journal = journal
        self._run = run
        self._watch = watch
        self._coordinator = Coordinator(journal.contents)
        self._worker = Worker(self._coordinator.history, setting.replica, setting.estimator, setting.measure)
        self._attack = Attack(options.attack, options.hostile, options.seed)
        self._progress = progress
        self._now_s = 0.0
        self._arrivals: list[tuple[float, int, Callable[[], Event]]] = []
        self._order = count()
        self._asked = options.clients
        self._asynchronous = journal.contents.genesis.rules.asynchronous

    def run(self) -> None:
        """Run until the coordinator is finished."""
        decisions = self._coordinator.handle(Connected(client_names(self._options.clients)), self._now_s)
        while not self._carry_out(decisions):
            self._now_s, _, arrive = heapq.heappop(self._arrivals)
            decisions = self._coordinator.handle(arrive(), self._now_s)

    def _carry_out(self, decisions: list[Decision]) -> bool:
        """Do what was decided, and what follows from that at once; true when the run is finished."""
        queue = list(decisions)
        while queue:
            match queue.pop(0):
                case Finish():
                    return True
                case Announce(plan) if self._asynchronous and plan.purpose is Purpose.TRAIN:
                    self._announce_alone(plan)
                case Announce(plan):
                    self._announce(plan)
                case Append(record):
                    queue += self._append(record)
                case Refuse(client, reason) if not self._asynchronous:
                    raise ProtocolError(f"the coordinator refused simulated client {client}: {reason}")
        return False

    def _announce(self, plan: Plan) -> None:
        """Every client of the cohort that answers in time answers at its moment; then the deadline."""
        if not self._asynchronous:
            self._arrivals.clear()
        self._asked = len(plan.cohort)
        for client in plan.cohort:
            late_s = self._lateness(plan, client)
            if late_s is not None:
                self._arrive(late_s, lambda client=client: self._answer(plan, client))  # type: ignore[misc]
        self._arrive(plan.deadline_s, Tick)

    def _announce_alone(self, plan: Plan) -> None:
        """A client's own plan: done at once, while the replica is where it begins, and answered when it would be."""
        (client,) = plan.cohort
        report = self._answer(plan, client)
        self._arrive(self._duration(plan, client), lambda: report)

    def _duration(self, plan: Plan, client: int) -> float:
        """Simulated seconds of a client's own plan: 1, and up to the delay, half by what client, half by which plan."""
        seed = self._options.seed
        slow, late = fault_draws(seed, 0, client)[1], fault_draws(seed, plan.round, client)[1]
        return 1 + self._options.delay * (slow + late) / 2

    def _lateness(self, plan: Plan, client: int) -> float | None:
        """Simulated seconds until a client answers; None where it never does, or too late. Training rounds only."""
        if plan.purpose is not Purpose.TRAIN:
            return 0.0
        drop, delay = fault_draws(self._options.seed, plan.round, client)
        late_s = delay * self._options.delay
        return None if drop < self._options.drop or late_s >= plan.deadline_s else late_s

    def _arrive(self, after_s: float, event: Callable[[], Event]) -> None:
        heapq.heappush(self._arrivals, (self._now_s + after_s, next(self._order), event))

    def _answer(self, plan: Plan, client: int) -> Report:
        estimator = self._setting.estimator
        before = estimator.forwards
        report = self._attack(plan, self._worker.carry_out(plan, client, self._setting.clients[client]))
        self._progress.forwards += estimator.forwards - before
        if plan.purpose is Purpose.TRAIN:
            sent = ClientReport(client, report.examples, report.loss, report.projected_gradients)
            self._progress.bytes_up += report_size(sent)
        return report

    def _append(self, record: Record) -> list[Decision]:
        before = self._journal.contents.valid_bytes
        record_hash = self._journal.append(record)
        replica = self._setting.replica
        replica.apply(record, record_hash)
        if record.entries:
            self._progress.bytes_down += (self._journal.contents.valid_bytes - before) * self._asked
        if record.state_digest is not None:
            save_state(self._run.state, replica)
        position = self._journal.position
        progress = self._progress
        self._run.append_metrics(position, record, **progress.measured())
        self._watch(position, record, progress)
        return self._coordinator.handle(Appended(record, record_hash), self._now_s)
