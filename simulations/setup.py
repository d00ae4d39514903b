"""From options to what a simulation needs: base, replica, clients' data, genesis."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedzo.base.checkpoint import Base, head_of, load_base, load_tokenizer, tokenizer_digest
from fedzo.coordinator.range_guard import RangeGuard
from fedzo.device import get_device
from fedzo.errors import DataError
from fedzo.estimate import LANES, Estimator, Loss, Measure, weights_of
from fedzo.journal import Genesis, records
from fedzo.noise import Distribution, get_backend
from fedzo.run_directory import RunDirectory
from fedzo.scopes.base import scoped
from fedzo.state.replica import Replica
from fedzo.tasks import get_task
from fedzo.tasks.dealing import deal_rows
from fedzo.tasks.examples import ClientExamples
from fedzo.tasks.labels import find_labels
from fedzo.tasks.rows import Row, read_rows
from fedzo.tasks.task import Measured, Task
from fedzo.tiers.choice import place_of

from .options import SimulateOptions


@dataclass(slots=True)
class Setting:
    """A simulation ready to run."""

    genesis: Genesis
    replica: Replica
    estimator: Estimator
    measure: Measure[Measured]
    clients: Sequence[ClientExamples]
    base_digest: bytes


def prepare(options: SimulateOptions) -> Setting:
    """Load the base and the data.

    Raises:
        CheckpointError, DataError, ConfigError: by name, before anything is written.
    """
    base, task, clients = load(options)
    setting = assemble(options, base, task.spec, clients, task.loss, task.measure)
    hint = f"is --max-length {options.max_length} more than its positions, or its tokenizer another model's?"
    check_setting(setting, options, hint)
    return setting


def load(options: SimulateOptions) -> tuple[Base, Task, list[ClientExamples]]:
    """The base, the task and each client's examples.

    Raises:
        CheckpointError, DataError, ConfigError: by name.
    """
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    tokenizer = load_tokenizer(options.model)
    rows = read_rows(options.data)
    task = make_task(options, tokenizer, rows)
    clients = load_clients(options, task, rows)
    base = load_base(options.model, head_of(task.spec, options.seed))
    return scoped(base, options.scope_spec(), options.seed), task, clients


def assemble(
    options: SimulateOptions,
    base: Base,
    task: records.Task,
    clients: Sequence[ClientExamples],
    loss: Loss,
    measure: Measure[Measured],
) -> Setting:
    """Replica, genesis and estimator; the base's model is a skeleton from here on."""
    distribution = Distribution(options.distribution)
    threads = torch.get_num_threads()
    device = get_device(options.device, options.backend)
    run = RunDirectory(Path(options.out))
    replica = Replica.from_base(
        base,
        distribution,
        scope=options.scope_spec(),
        backend=get_backend(options.backend),
        threads=threads,
        place=place_of(options.state, run.state, device),
        defer=run.journal.exists(),
    )
    genesis = options.genesis(base.digest, replica.manifest, task)
    estimator = Estimator(
        base.model,
        replica,
        loss=loss,
        dtype=getattr(torch, options.dtype),
        lanes_at_once=LANES * options.directions_per_pass,
        weights=weights_of(replica, options.compute_copy, options.copy_tier(options.state), run.path, device),
    )
    return Setting(genesis, replica, estimator, measure, clients, base.digest)


def check_setting(setting: Setting, options: SimulateOptions, hint: str) -> None:
    """Refuse what cannot run before anything is written: the perturbation, then a forward of the run's first batch.

    A run that is resumed has passed this once.

    Raises:
        RangeGuardError, DataError: by name.
    """
    genesis = setting.genesis
    if setting.replica.deferred:
        return
    RangeGuard(genesis.manifest, genesis.distribution, genesis.scope).check_perturbation(genesis.rules.epsilon)
    try:
        batch, _ = setting.clients[0].training_batch(0, options.batch_size)
        setting.estimator.losses(batch, [(0, (0,))])
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"model {options.model!r} gives no loss on the data ({type(error).__name__}: {error}); {hint}"
        ) from error
    setting.estimator.forwards = 0


def make_task(options: SimulateOptions, tokenizer: Any, rows: Sequence[Row]) -> Task:
    """The task that the options name, with the labels that the data has where none are given.

    Raises:
        ConfigError, DataError: by the option's name, or the row's place.
    """
    defined, labels = options.definition(), options.labels
    kind = get_task(defined.task)
    stated = labels or defined.labels or defined.choices
    if not stated and defined.label_field and "labels" in kind.uses | kind.may_use:
        labels = find_labels(rows, defined.label_field)
    return kind(options.task_spec(tokenizer_digest(tokenizer), labels), tokenizer, options.text_field)


def load_clients(options: SimulateOptions, task: Task, rows: Sequence[Row]) -> list[ClientExamples]:
    """Partition and tokenise the data.

    Raises:
        DataError: a client would hold nothing; names it.
    """
    return [
        ClientExamples(
            task.examples(training),
            task.examples(held_out),
            collate=task.collate,
            length=task.length,
            run_seed=options.seed,
            client=client,
            evaluation_batch=options.eval_batch_size or options.batch_size,
        )
        for client, (training, held_out) in enumerate(deal(options, task, rows))
    ]


def deal(options: SimulateOptions, task: Task, rows: Sequence[Row]) -> list[tuple[list[Row], list[Row]]]:
    """Each client's training and held-out rows.

    Raises:
        DataError: a client would hold nothing; names it.
    """
    return deal_rows(
        task,
        rows,
        clients=options.clients,
        how=options.partition,
        run_seed=options.seed,
        data=options.data,
        eval_data=options.eval_data,
    )
