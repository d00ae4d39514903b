"""One cell of a comparison: a run of one row at one learning rate and seed, in a directory of its own.

A cell is finished when its `result.json` is there, whole. One that was begun is gone on with: a run of fedzo from its
journal, a baseline from the beginning.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedzo.config import make_options, write_toml
from fedzo.errors import ConfigError
from fedzo.new_file import write_new_file
from fedzo.options.usual import with_usual
from fedzo.run_directory import RunDirectory

from ..api import simulate
from ..baselines.training import train
from ..engines import get_engine
from ..opening import open_journal
from ..options import SimulateOptions
from ..setup import prepare
from ..simulator import Progress
from .budget import rounds_for
from .plan import Comparison, Rate, Row
from .result import Result, read_result, result_of
from .stated import Stated, begin, begun, stated
from .subject import baseline_subject, make_subject

_GIVEN_WITH_A_MODULE = ("model", "data", "eval_data", "out", "clients", "engine", "partition")


@dataclass(frozen=True, slots=True)
class Cell:
    """A run to be made."""

    comparison: Comparison
    row: Row
    rate: Rate
    seed: int
    trial: bool
    """It is there to choose a learning rate, on its share of the budget."""
    path: Path

    @property
    def run(self) -> RunDirectory:
        """Where its files go."""
        return RunDirectory(self.path)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row.name}, lr {self.rate}, seed {self.seed}{', trial' if self.trial else ''}"

    def options(self) -> SimulateOptions:
        """Of its run: rounds and evaluations follow from the budget.

        Raises:
            ConfigError: an option that a run would refuse.
        """
        kind, amount = self.comparison.budget
        share = self.comparison.trial_share if self.trial else 1.0
        values = dict(self.row.options) | {"lr": self.rate, "seed": self.seed, "out": str(self.path.absolute())}
        values["method"] = "distinct" if self.row.is_baseline else self.row.method  # of no use to a baseline
        try:
            rounds = rounds_for(
                (kind, max(1, int(amount * share))),
                make_options(SimulateOptions, values),
                self.row.method,
                baseline=self.row.is_baseline,
                parameters=lambda: self._parameters(values),
            )
            every = -(-rounds // (1 if self.trial else self.comparison.evaluations))
            return make_options(SimulateOptions, with_usual(values) | {"rounds": rounds, "eval_every": every})
        except ConfigError as error:
            raise ConfigError(f"row {self.row.name!r}: {error}") from error

    def result(self) -> Result | None:
        """What came of it; None where it is not finished.

        Raises:
            ConfigError: it was run, or begun, with other options or on something else.
        """
        found = read_result(self.path / "result.json")
        now = stated(self.options(), self.comparison, baseline=self.row.is_baseline)
        earlier = begun(self.run, now) if found is None else Stated(found.options, found.sources)
        if earlier is not None and (difference := now.difference(earlier)):
            raise ConfigError(
                f"{self.path}: was run with other options than row {self.row.name!r} has now ({difference}); give "
                "another --out, or remove it"
            )
        return found

    def _parameters(self, values: dict[str, Any]) -> int:
        options = make_options(SimulateOptions, values)
        return sum(parameter.numel() for parameter in baseline_subject(self.comparison.subject, options).parameters)


def run_cell(cell: Cell, threads: int = 0) -> Result:
    """Run a cell to its end, or go on with it.

    Args:
        cell: to run.
        threads: of the CPU, where its options leave them open; 0 is all cores.
    """
    options, run = cell.options(), cell.run
    options = replace(options, threads=options.threads or threads)
    now = stated(options, cell.comparison, baseline=cell.row.is_baseline)
    run.path.mkdir(parents=True, exist_ok=True)
    if cell.row.is_baseline:
        with run.exclusive():
            write_toml(run.config, options)
            train(cell.row.method, baseline_subject(cell.comparison.subject, options), options, run)
    else:
        begin(run, now)
        if cell.comparison.subject:
            _simulate_module(cell, options)
        else:
            _simulate(options, run)
    result = result_of(cell.row, options, run, now)
    write_new_file(cell.path / "result.json", json.dumps(asdict(result)).encode())
    return result


def _simulate(options: SimulateOptions, run: RunDirectory) -> None:
    """As `fedzo simulate` does, without its display."""
    resume = run.journal.exists()
    setting = prepare(options)
    with open_journal(run, options, setting, resume, _silent) as journal:
        progress = Progress.resumed(run.read_metrics()) if resume else Progress()
        get_engine(options.engine)(options, setting, journal, run, progress, lambda *_: None).run()


def _simulate_module(cell: Cell, options: SimulateOptions) -> None:
    made = make_subject(cell.comparison.subject, options)
    given = {name: value for name, value in asdict(options).items() if name not in _GIVEN_WITH_A_MODULE}
    defaults = asdict(SimulateOptions(model="", data="", out=""))
    simulate(
        made.model,
        made.datasets,
        loss=made.loss,
        evaluation=made.evaluation,
        collate=made.collate,
        measure=made.measure,
        out=cell.path,
        resume=cell.run.journal.exists(),
        **{name: value for name, value in given.items() if value != defaults[name]},
    )


def _silent(found: str) -> None:
    """Nobody is told how a cell was resumed."""
