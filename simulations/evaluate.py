"""`fedzo evaluate`: how well a run's model, or any model, does on held-out data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedzo.base.checkpoint import Base, head_of, load_base, load_tokenizer
from fedzo.config import make_options, option_name, parse_options, read_toml
from fedzo.device import get_device, moved
from fedzo.errors import ConfigError, DataError
from fedzo.estimate import Batch, Estimator, Measure, weights_of
from fedzo.journal import JournalContents
from fedzo.noise.draws import epoch_order
from fedzo.options.checks import MOST, require_choice, require_range
from fedzo.results.rebuild import rebuild
from fedzo.run_directory import RunDirectory
from fedzo.state.replica import Replica
from fedzo.tasks import get_task
from fedzo.tasks.rows import TEXT_FIELD, Row, read_rows
from fedzo.tasks.task import Task
from fedzo.tiers import TIERS

from .measured import Evaluated, Subject, measured
from .options import SimulateOptions
from .setup import deal, make_task

_BATCHES_TOGETHER = 4
"""Whose forward passes go through a run's model together, its weights made once for all of them."""
_OF_THE_RUN = ("task", "prompt", "response", "label_field", "labels", "max_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a model is shown of the data."""

    shots: int = 0
    """Rows with their answers before every prompt."""
    source: str | None = None
    """Where those are drawn from; the evaluated data itself, less them, where not given."""
    seed: int = 0
    """Of the draw."""
    rows: int = 0
    """Rows evaluated, the first of the data; 0 is all."""

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        require_range("shots", self.shots, 0, MOST)
        require_range("rows", self.rows, 0, MOST)
        require_range("seed", self.seed, 0, 2**64 - 1)
        if self.source is not None and not self.shots:
            raise ConfigError(f"option shots-from is {self.source!r}, but --shots is 0; say how many")


def evaluate(target: str, given: dict[str, Any], base: str | None, shown: Shown = Shown()) -> Evaluated:
    """Evaluate a run's tuned model on its held-out data or on data given, or a model on data given.

    Args:
        target: run directory, checkpoint directory or hub name.
        given: options of `fedzo simulate` that say what to evaluate on.
        base: of a run, where its config does not name it.
        shown: demonstrations, and how much of the data.

    Raises:
        ConfigError, DataError, CheckpointError, JournalError: by name.
    """
    use_threads(given)
    run = RunDirectory(Path(target))
    if not run.journal.exists():
        return measured(_of_model(target, given, shown))
    for name in _OF_THE_RUN:
        if name in given:
            raise ConfigError(f"option {option_name(name)}: {target} is a run, and its own is used; leave it out")
    return measured(subject_of_run(run, rebuilt(run, given, base), given, shown))


def use_threads(given: dict[str, Any]) -> None:
    """Compute with the option's threads; raises ConfigError."""
    threads = given.get("threads", 0)
    require_range("threads", threads, 0, 2**16)
    torch.set_num_threads(threads or torch.get_num_threads())


def rebuilt(run: RunDirectory, given: dict[str, Any], base: str | None) -> tuple[Replica, Base, JournalContents]:
    """As `fedzo.results.rebuild.rebuild`, on the tier that the options name."""
    state = given.get("state", "auto")
    require_choice("state", state, TIERS)
    return rebuild(run, base, state=state, device=get_device(given.get("device", "cpu")))


def subject_of_run(
    run: RunDirectory, made: tuple[Replica, Base, JournalContents], given: dict[str, Any], shown: Shown
) -> Subject:
    """A run's replica, as it is whenever it is measured, on what the run holds out or on data given.

    Args:
        run: the run.
        made: what was rebuilt of it; the base's model is the replica's skeleton from here on.
        given, shown: as of `evaluate`.

    Raises:
        ConfigError, DataError: by name.
    """
    replica, loaded, contents = made
    spec = contents.genesis.task
    stored = read_toml(run.config) if run.config.exists() else {}  # a client's directory has none
    text_field = given.get("text_field", stored.get("text-field", TEXT_FIELD))
    task = get_task(spec.name)(spec, load_tokenizer(loaded.source), text_field)
    source = given.get("data")
    shares = [task.rows(read_rows(source), source)] if source is not None else _held_out(run, stored, task)
    examples = _examples(task, shares, shown)
    device = get_device(given.get("device", "cpu"))
    weights = weights_of(replica, "none", given.get("state", "auto"), run.path, device)
    estimator = Estimator(loaded.model, replica, lanes_at_once=_BATCHES_TOGETHER, weights=weights)
    batch_size = given.get("batch_size", contents.genesis.rules.batch_size)
    require_range("batch_size", batch_size, 1, MOST)
    return Subject(estimator.evaluate, task, examples, batch_size)


def _held_out(run: RunDirectory, stored: dict[str, Any], task: Task) -> list[list[Row]]:
    """Of each client of a simulation."""
    if "data" not in stored:
        raise ConfigError(f"{run.path}: the run was no simulation, so its rows are not known here; give --data")
    values = parse_options(SimulateOptions, stored, str(run.config))
    here = {"task": task.spec.name, "device": "cpu", "backend": "auto"}  # what it began with may not be at hand
    options = make_options(SimulateOptions, values | here)
    shares = [held_out for _, held_out in deal(options, task, read_rows(options.data))]
    if not any(shares):
        raise ConfigError(f"{run.path}: the run holds nothing out; give --data")
    return shares


def _of_model(target: str, given: dict[str, Any], shown: Shown) -> Subject:
    if "data" not in given:
        raise ConfigError(
            f"{target} holds no run, so it is taken for a model: name a run, or give --data to evaluate it on"
        )
    if "state" in given:
        raise ConfigError(f"option state: {target} is not a run directory, which alone has a state; leave it out")
    values = {"model": target, "out": "", "clients": 1} | given
    options = make_options(SimulateOptions, parse_options(SimulateOptions, values, "fedzo evaluate"))
    rows = read_rows(options.data)
    task = make_task(options, load_tokenizer(target), rows)
    examples = _examples(task, [task.rows(rows, options.data)], shown)
    device = get_device(options.device)
    model = load_base(target, head_of(task.spec, options.seed)).model.float().to(device)

    @torch.inference_mode()
    def measure_all(batches: Sequence[Batch], measure: Measure[Any]) -> list[Any]:
        return [measure(model, moved(batch, device)) for batch in batches]

    return Subject(measure_all, task, examples, options.batch_size)


def _examples(task: Task, shares: list[list[Row]], shown: Shown) -> list[Any]:
    """Of each client's rows on their own, as the run's evaluations make them."""
    left = {id(row) for row in _demonstrated(task, [row for share in shares for row in share], shown)}
    return [example for share in shares for example in task.examples([row for row in share if id(row) in left])]


def _demonstrated(task: Task, rows: list[Row], shown: Shown) -> list[Row]:
    """The rows to evaluate on; the task shows the demonstrations before each."""
    if shown.shots:
        pool = rows if shown.source is None else task.rows(read_rows(shown.source), shown.source)
        if len(pool) < shown.shots + (shown.source is None):
            raise DataError(f"--shots {shown.shots}: there are {len(pool)} rows to draw from; give fewer, or more data")
        drawn = epoch_order(shown.seed, 0, 0, len(pool))[: shown.shots].tolist()
        task.demonstrate([pool[k] for k in drawn])
        if shown.source is None:
            rows = [row for k, row in enumerate(rows) if k not in drawn]
    return rows[: shown.rows] if shown.rows else rows
