"""What a simulation prints: a live bar on a terminal, plain lines elsewhere."""

import time
from collections import Counter
from types import TracebackType
from typing import Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fedzo.cli.runs import counted
from fedzo.estimate.felt import unfelt, warning_of
from fedzo.journal import Calibration, Commit, Evaluation, Record, Rollback, Rules, Void

from .options import SimulateOptions
from .setup import Setting
from .simulator import Progress

_PLAIN_EVERY_S = 10.0


class Display:
    """Shows records as they come; a context manager around the run."""

    def __init__(self, console: Console, rounds: int, done: int, metric: str | None) -> None:
        self._console = console
        self._metric = metric
        self._bar = Bar(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=rounds, completed=done, status="")
        self._last_s = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def watch(self, position: int, record: Record, progress: Progress) -> None:
        """See `Simulator`."""
        body = record.body
        if isinstance(body, Commit):
            self._status(record.round, f"loss {body.loss:.4f}  {_rates(progress)}")
        elif isinstance(body, Evaluation):
            metric = "" if body.metric is None else f", {self._metric} {body.metric:.4f}"
            self._console.print(
                f"round {record.round}: held-out loss {body.loss:.4f}{metric} ({counted(len(body.clients), 'client')})"
            )
        elif isinstance(body, Void):
            self._console.print(f"round {record.round}: void, {body.reason}")
            self._bar.update(self._task, completed=record.round)
        elif isinstance(body, Calibration):
            self._console.print(f"round {record.round}: calibrated, learning rate {body.learning_rate:.3g}")
        elif isinstance(body, Rollback):
            self._console.print(
                f"round {record.round}: rolled back to position {body.position}, learning rate "
                f"× {body.learning_rate_scale:g}: {body.reason}"
            )

    def _status(self, round_number: int, status: str) -> None:
        self._bar.update(self._task, completed=round_number, status=status)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_s >= _PLAIN_EVERY_S:
            self._last_s = now
            self._console.print(f"round {round_number}: {status}")


def show_setting(console: Console, options: SimulateOptions, setting: Setting) -> None:
    """What is about to run, and how the data was dealt."""
    manifest = setting.genesis.manifest
    sizes = Counter({client: len(data.training) for client, data in enumerate(setting.clients)})
    console.print(
        f"model {options.model}: {manifest.elements:,} parameters in {len(manifest)} tensors, "
        f"base {setting.base_digest.hex()[:16]}…"
    )
    if options.dtype != "float32" and not setting.replica.deferred:
        shares = unfelt(setting.replica, setting.genesis.rules.epsilon, getattr(torch, options.dtype))
        warning = warning_of(shares, options.epsilon, options.dtype)
        if warning is not None:
            console.print(warning)
    listed = ", ".join(str(sizes[client]) for client in range(min(16, len(sizes))))
    more = f", … ({len(sizes)} clients, {sum(sizes.values())} examples)" if len(sizes) > 16 else ""
    console.print(
        f"partition {options.partition}, seed {options.seed}: training examples of each client: {listed}{more}"
    )
    console.print(_said_of_rules(setting.genesis.rules))


def _said_of_rules(rules: Rules) -> str:
    rounds = f"{counted(rules.rounds, 'round')} of {counted(rules.cohort, 'client')}"
    commits = f"{counted(rules.rounds, 'commit')} of {counted(rules.buffer_size, 'report')}"
    rate = "auto, found before the first" if rules.calibrated else f"{rules.learning_rate:g}"
    return (
        f"method {rules.method}, {counted(rules.directions, 'direction')} a client: "
        f"{commits if rules.asynchronous else rounds}, learning rate {rate}, schedule {rules.schedule}"
    )


def _rates(progress: Progress) -> str:
    seconds = max(progress.seconds, 1e-9)
    sent = progress.bytes_up + progress.bytes_down
    return f"{progress.forwards / seconds:.1f} forward passes/s  {sent / seconds:,.0f} bytes/s"
