"""Virtual clients in the processes of a simulation: any of them answers for any client, on its one replica.

The replica is kept between messages under the run's genesis hash and stands at one position; a message brings what it
lacks. It is never kept by client, since a simulation hands messages to whichever process is free.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from fedzo.base.checkpoint import head_of, load_base, load_tokenizer, tokenizer_digest
from fedzo.coordinator.calibration import most_directions
from fedzo.device import get_device
from fedzo.estimate import LANES, Estimator, weights_of
from fedzo.journal import Genesis
from fedzo.journal.copies import MemoryJournal
from fedzo.noise import COEFFICIENT_BITS, get_backend
from fedzo.options.compute import ComputeOptions
from fedzo.scopes.base import scoped
from fedzo.tasks import get_task
from fedzo.tasks.dealing import client_names, deal_rows
from fedzo.tasks.examples import ClientExamples
from fedzo.tasks.rows import read_rows
from fedzo.tasks.task import Task
from fedzo.v1 import rounds_pb2 as rounds
from fedzo.v1 import turns_pb2 as pb
from fedzo.wire.turns import genesis_contents
from fedzo.worker import ClientData, Worker

from .home import Home, Say
from .options import Limits, RowOptions
from .participant import Participant
from .turns import Seat


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualOptions(ComputeOptions, RowOptions):
    """What all virtual clients of a run work with; without `threads`, with those that their process was given."""

    model: Annotated[str, "The run's base: checkpoint directory or hub name."]
    data: Annotated[str, "Rows that are dealt to the nodes; only in Flower's simulation."]
    partition: Annotated[str, "How rows are dealt: iid, by:FIELD, or dirichlet:FIELD:ALPHA."] = "iid"

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the option."""
        self.check_compute()
        self.check_rows()


_SEATS: dict[bytes, Seat] = {}
"""This process's, by the run's genesis hash; never more than one, since a seat holds a replica."""


def in_simulation() -> bool:
    """Is this a process of Flower's simulation?"""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def take_virtual_turn(
    turn: pb.Turn, options: VirtualOptions, client: int, clients: int, say: Say
) -> rounds.ClientMessage:
    """A turn of one of the virtual clients.

    Args:
        turn: as it came.
        options: of all of them.
        client: its index, 0 to clients - 1.
        clients: number of clients.
        say: told what an operator should see.

    Raises:
        FedzoError: as `Seat.take`, or base or data cannot be used.
    """
    if turn.genesis_hash not in _SEATS:
        if not turn.HasField("genesis"):
            return rounds.ClientMessage()
        _SEATS.clear()
        _SEATS[turn.genesis_hash] = _make_seat(turn, options, clients, say)
    return _SEATS[turn.genesis_hash].take(turn, client_names(clients)[client])


def _make_seat(turn: pb.Turn, options: VirtualOptions, clients: int, say: Say) -> Seat:
    """Load the base, once for all clients."""
    journal = MemoryJournal(genesis_contents(turn.genesis_hash, turn.genesis))
    genesis = journal.contents.genesis
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(options.model)
    task = get_task(genesis.task.name)(genesis.task, tokenizer, options.text_field)
    data = _deal(genesis, task, options, clients)
    base = load_base(options.model, head_of(genesis.task, genesis.run_seed))
    base = scoped(base, genesis.scope, genesis.run_seed)
    device = get_device(options.device, options.backend)
    home = Home(None, journal, base, backend=get_backend(options.backend), threads=threads, say=say, device=device)
    estimator = Estimator(
        base.model,
        home.replica,
        loss=task.loss,
        dtype=getattr(torch, options.dtype),
        lanes_at_once=LANES * options.directions_per_pass,
        weights=weights_of(home.replica, options.compute_copy, options.copy_tier("host"), Path(), device),
    )
    worker = Worker(home.history, home.replica, estimator, task.measure)
    rules = genesis.rules
    epsilon = rules.epsilon / 2.0**COEFFICIENT_BITS
    limits = Limits(steps=most_directions(rules), batch=rules.batch_size, epsilon=epsilon)
    digest = tokenizer_digest(tokenizer)
    return Seat(home, lambda name: Participant(name, home, worker, data(name), digest, limits, say))


def _deal(
    genesis: Genesis, task: Task, options: VirtualOptions, clients: int
) -> Callable[[str], Callable[[int], ClientData]]:
    """The examples of a client, given its name and then its index; they are made when they are first asked for."""
    shares = deal_rows(
        task,
        read_rows(options.data),
        clients=clients,
        how=options.partition,
        run_seed=genesis.run_seed,
        data=options.data,
        eval_data=options.eval_data,
    )
    by_name = dict(zip(client_names(clients), shares, strict=True))

    def data_of(name: str) -> Callable[[int], ClientData]:
        training, held_out = by_name[name]
        return lambda client: ClientExamples(
            task.examples(training),
            task.examples(held_out),
            collate=task.collate,
            length=task.length,
            run_seed=genesis.run_seed,
            client=client,
            evaluation_batch=options.eval_batch_size or genesis.rules.batch_size,
        )

    return data_of
