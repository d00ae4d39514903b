"""`fedzo evaluate`: how well a run's model, or any model, does on held-out data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf
from pathlib import Path
from typing import Any

import torch

from fedzo.checkpoint import head_of, load_base, load_tokenizer
from fedzo.config import make_options, option_name, parse_options, read_toml
from fedzo.device import get_device, moved
from fedzo.errors import ConfigError, DataError
from fedzo.estimate import Batch, Estimator, Measure, weights_of
from fedzo.noise.draws import epoch_order
from fedzo.rebuild import rebuild
from fedzo.run_directory import RunDirectory
from fedzo.run_options import MOST, require_choice, require_range
from fedzo.tasks import get_task
from fedzo.tasks.metrics import Answer, score
from fedzo.tasks.rows import Row, read_rows
from fedzo.tasks.task import Task, class_names
from fedzo.tiers import TIERS

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


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What was found."""

    loss: float
    metrics: Mapping[str, float]
    examples: int
    """What the loss is the mean of: predicted tokens, or rows where a label is predicted."""
    of_tokens: bool
    """The former."""
    cut: int
    """Of the rows, those that fill `max_length` and so may have been cut."""
    answers: Sequence[Answer] = field(default=(), repr=False)
    """What the metrics were computed of, where the task gives answers."""

    @property
    def perplexity(self) -> float | None:
        """exp(loss), where the loss is that of tokens; inf where that is more than a float holds."""
        if not self.of_tokens:
            return None
        try:
            return exp(self.loss)
        except OverflowError:
            return inf


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
    torch.set_num_threads(given.get("threads") or torch.get_num_threads())
    is_run = RunDirectory(Path(target)).journal.exists()
    work = _of_run(target, given, base, shown) if is_run else _of_model(target, given, shown)
    return _measure(*work)


_MeasureAll = Callable[[Sequence[Batch], Measure[Any]], list[Any]]


def _of_run(
    target: str, given: dict[str, Any], base: str | None, shown: Shown
) -> tuple[_MeasureAll, Task, list[Any], int]:
    for name in _OF_THE_RUN:
        if name in given:
            raise ConfigError(f"option {option_name(name)}: {target} is a run, and its own is used; leave it out")
    run = RunDirectory(Path(target))
    state = given.get("state", "auto")
    require_choice("state", state, TIERS)
    device = get_device(given.get("device", "cpu"))
    replica, loaded, contents = rebuild(run, base, state=state, device=device)
    spec = contents.genesis.task
    stored = parse_options(SimulateOptions, read_toml(run.config), str(run.config))
    options = make_options(SimulateOptions, stored | {"task": spec.name})  # a file that it began with may be gone
    task = get_task(spec.name)(spec, load_tokenizer(loaded.source), given.get("text_field", options.text_field))
    if "data" in given:
        shares = [task.rows(read_rows(given["data"]), given["data"])]
    else:
        shares = [held_out for _, held_out in deal(options, task, read_rows(options.data))]
        if not any(shares):
            raise ConfigError(f"{target}: the run holds nothing out; give --data")
    examples = _examples(task, shares, shown)
    weights = weights_of(replica, "none", state, run.path, device)
    estimator = Estimator(loaded.model, replica, lanes_at_once=_BATCHES_TOGETHER, weights=weights)
    return estimator.evaluate, task, examples, given.get("batch_size", options.batch_size)


def _of_model(target: str, given: dict[str, Any], shown: Shown) -> tuple[_MeasureAll, Task, list[Any], int]:
    if "data" not in given:
        raise ConfigError(f"{target} is no run directory, so it is taken for a model: give --data to evaluate it on")
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

    return measure_all, task, examples, options.batch_size


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


def _measure(measure_all: _MeasureAll, task: Task, examples: Sequence[Any], batch_size: int) -> Evaluated:
    ordered = sorted(examples, key=task.length, reverse=True)
    collated = [task.collate(ordered[low : low + batch_size]) for low in range(0, len(ordered), batch_size)]
    counts = [count for _, count in collated]
    judged = bool(task.spec.metrics)
    found = measure_all([batch for batch, _ in collated], task.judge if judged else task.measure)
    total = sum(counts)
    loss = sum(mean * count for (mean, _), count in zip(found, counts, strict=True)) / total
    answers: list[Answer] = [answer for _, answered in found for answer in answered] if judged else []
    if judged:
        classes = class_names(task.spec)
        metrics = {name: score(name, answers, classes) for name in task.spec.metrics}
    elif task.metric:
        mean = sum((scored or 0.0) * count for (_, scored), count in zip(found, counts, strict=True)) / total
        metrics = {task.metric: mean}
    else:
        metrics = {}
    cut = sum(task.length(example) >= task.spec.max_length for example in examples)
    return Evaluated(loss, metrics, total, task.metric is None, cut, answers)
