"""What a cell trains: a checkpoint on rows of data, or a module and datasets that a function makes."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedzo.errors import ConfigError
from fedzo.estimate import Batch, Loss, Measure
from fedzo.tasks.examples import ClientExamples
from fedzo.tasks.task import Measured

from ..baselines.baseline import Subject
from ..options import SimulateOptions
from ..setup import load


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeSubject:
    """What a function named by `[subject]` gives: the arguments of `fedzo.simulate`."""

    model: nn.Module
    datasets: Sequence[Sequence[Any]]
    evaluation: Sequence[Sequence[Any]]
    collate: Callable[[list[Any]], Batch]
    loss: Loss
    measure: Measure[Measured]


def make_subject(spec: Mapping[str, Any], options: SimulateOptions) -> MadeSubject:
    """Call the function that `make` names with `clients` and `seed` of the options and the spec's other keys.

    Its module is looked for among what is installed and then in the current directory.

    Raises:
        ConfigError: it cannot be imported, or gives something else.
    """
    arguments = dict(spec)
    name = arguments.pop("make", None)
    module, _, function = str(name).partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a console script's path begins where it is installed
    try:
        make = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"[subject]: make is {name!r}, which cannot be imported ({error}); give module:function, "
            f"of a package that is installed or of a file under {here}"
        ) from error
    torch.set_num_threads(options.threads or torch.get_num_threads())
    made = make(clients=options.clients, seed=options.seed, **{k.replace("-", "_"): v for k, v in arguments.items()})
    if not isinstance(made, MadeSubject):
        raise ConfigError(f"[subject]: {name} gave a {type(made).__name__}; expected a MadeSubject")
    return made


def baseline_subject(spec: Mapping[str, Any], options: SimulateOptions) -> Subject:
    """The same model, data and order of batches as a run of fedzo with these options would have."""
    if not spec:
        base, task, clients = load(options)
        return Subject(base.model.float().eval(), clients, task.collate, task.loss, task.measure)
    made = make_subject(spec, options)

    def collate(examples: Sequence[Any]) -> tuple[Batch, int]:
        return made.collate(list(examples)), len(examples)

    clients = [
        ClientExamples(
            training,
            held_out,
            collate=collate,
            length=lambda example: 0,
            run_seed=options.seed,
            client=client,
            evaluation_batch=options.batch_size,
        )
        for client, (training, held_out) in enumerate(zip(made.datasets, made.evaluation, strict=True))
    ]
    return Subject(made.model.float().eval(), clients, collate, made.loss, made.measure)
