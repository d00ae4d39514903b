"""`fedzo.simulate`: a simulation on a model and datasets in memory."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from fedzo.base.checkpoint import Base, base_digest
from fedzo.config import option_name, parse_options
from fedzo.errors import ConfigError
from fedzo.estimate import Batch, Loss, Measure, model_loss
from fedzo.journal import Commit, Evaluation, JournalContents, read_journal, records
from fedzo.options.reading import options_of_run
from fedzo.run_directory import RunDirectory
from fedzo.scopes.base import scoped_model
from fedzo.tasks.examples import ClientExamples
from fedzo.tasks.task import Measured

from .opening import CHANGEABLE, open_journal
from .options import SimulateOptions
from .setup import assemble, check_setting
from .simulator import Progress, Simulator, Watcher

TASK = "in memory"
_FROM_ARGUMENTS = ("model", "data", "eval_data", "out", "clients", "engine")
_FOR_TEXT = (
    "text_field",
    "task",
    "prompt",
    "response",
    "label_field",
    "labels",
    "objective",
    "partition",
    "max_length",
)


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a simulation came to."""

    model: nn.Module
    """The module that was given, with the tuned weights in float32; with an adapter, the `PeftModel` around it."""
    state_digest: bytes
    journal: JournalContents
    progress: Progress

    @property
    def losses(self) -> list[tuple[int, float]]:
        """Mean training loss of each committed round: (round, loss)."""
        return [(r.round, r.body.loss) for r in self.journal.records if isinstance(r.body, Commit)]

    @property
    def held_out_losses(self) -> list[tuple[int, float]]:
        """Of each evaluation: (rounds done, loss)."""
        return [(r.round, r.body.loss) for r in self.journal.records if isinstance(r.body, Evaluation)]


def simulate(
    model: nn.Module,
    datasets: Sequence[Sequence[Any]],
    *,
    loss: Loss = model_loss,
    evaluation: Sequence[Sequence[Any]] | None = None,
    collate: Callable[[list[Any]], Batch] = default_collate,
    measure: Measure[Measured] | None = None,
    callbacks: Sequence[Watcher] = (),
    out: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Simulated:
    """Fine-tune a module with virtual clients, one for each dataset, that share one exact replica of it.

    Args:
        model: any module with float parameters; it is tuned, and given back in float32 and eval mode. It cannot be used
            while the simulation runs.
        datasets: one a client, each with `len` and indexing; an example is what `collate` takes.
        loss: scalar loss of (model, batch); by default what a Hugging Face model computes from a batch with labels.
        evaluation: held-out data, one a client; without it nothing is evaluated.
        collate: a batch of a list of examples.
        measure: (loss, metric) of the model on a held-out batch; by default the loss alone.
        callbacks: each called with (position, record, progress) when a record is durable.
        out: run directory, for `fedzo journal show`, `fedzo plot` and `resume`; without it nothing is kept on disk.
        resume: go on with the run in `out`; model and datasets are those that it began with.
        options: any other option of `fedzo simulate` (docs/options.md): method, rounds, lr, directions, seed, …

    Raises:
        ConfigError, DataError, CheckpointError: by name, with the model as it was; where its data gives no loss, it
            is in float32 by then, with an adapter around it where the scope has one.
        EstimationError: the model keeps references to its weights; it is left without them.
    """
    for name in options:
        if name in (*_FROM_ARGUMENTS, *_FOR_TEXT):
            raise ConfigError(
                f"fedzo.simulate has no use for option {option_name(name)!r}: model, datasets and loss are given"
            )
    if out is None and resume:
        raise ConfigError("resume=True needs the run directory: give out")
    if evaluation is not None and len(evaluation) != len(datasets):
        raise ConfigError(f"{len(evaluation)} evaluation datasets for {len(datasets)} clients; give one for each")
    with tempfile.TemporaryDirectory() as temporary:
        values = parse_options(SimulateOptions, options, "fedzo.simulate") | {
            "model": TASK,
            "data": TASK,
            "eval_data": "none" if evaluation is None else TASK,
            "out": str(Path(out or temporary).absolute()),
            "clients": len(datasets),
        }
        run, parsed = options_of_run(SimulateOptions, values, None, resume=resume, places=(), changeable=CHANGEABLE)
        clients = _clients(parsed, datasets, evaluation or [[] for _ in datasets], collate)
        return _run(model, parsed, run, clients, loss, measure or _only_loss(loss), callbacks, resume)


def _run(
    model: nn.Module,
    options: SimulateOptions,
    run: RunDirectory,
    clients: list[ClientExamples],
    loss: Loss,
    measure: Measure[Measured],
    callbacks: Sequence[Watcher],
    resume: bool,
) -> Simulated:
    if options.threads:
        torch.set_num_threads(options.threads)
    digest = base_digest(model)
    task = records.Task(name=TASK, tokenizer_digest=b"", max_length=0)
    with scoped_model(model, options.scope_spec(), options.seed) as chosen:
        setting = assemble(options, Base(source=TASK, model=chosen, digest=digest), task, clients, loss, measure)
        try:
            check_setting(setting, options, "does `loss` fit what `collate` makes?")
            with open_journal(run, options, setting, resume, lambda found: None) as journal:
                progress = Progress.resumed(run.read_metrics()) if resume else Progress()
                Simulator(options, setting, journal, run, progress, _all(callbacks)).run()
                contents = read_journal(run.journal)
        finally:
            setting.estimator.give_back()
    return Simulated(chosen, setting.replica.digest(), contents, progress)


def _clients(
    options: SimulateOptions, datasets: Sequence[Any], evaluation: Sequence[Any], collate: Callable[[list[Any]], Batch]
) -> list[ClientExamples]:
    return [
        ClientExamples(
            training,
            held_out,
            collate=lambda examples: (collate(list(examples)), len(examples)),
            length=lambda example: 0,
            run_seed=options.seed,
            client=client,
            evaluation_batch=options.eval_batch_size or options.batch_size,
        )
        for client, (training, held_out) in enumerate(zip(datasets, evaluation, strict=True))
    ]


def _only_loss(loss: Loss) -> Measure[Measured]:
    return lambda model, batch: (float(loss(model, batch)), None)


def _all(callbacks: Sequence[Watcher]) -> Watcher:
    def watch(position: int, record: records.Record, progress: Progress) -> None:
        for callback in callbacks:
            callback(position, record, progress)

    return watch
