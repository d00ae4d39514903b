"""Runs `fedzo client`: from options to a part in a run."""

import asyncio
import os
import signal
from dataclasses import dataclass

import torch
from rich.console import Console

from fedzo.base.checkpoint import head_of, load_base, load_tokenizer, tokenizer_digest
from fedzo.coordinator.calibration import most_directions
from fedzo.device import get_device
from fedzo.errors import ExcerptError, ReplicaError
from fedzo.estimate import LANES, Estimator, weights_of
from fedzo.journal import Genesis, Journal
from fedzo.noise import get_backend
from fedzo.plan.run import Planned
from fedzo.run_directory import RunDirectory
from fedzo.scopes.base import scoped
from fedzo.tasks import get_task
from fedzo.worker import Worker

from .beginning import open_or_begin
from .data import load_client_data
from .home import Home, Say
from .memory import tier_within, watched_memory
from .options import ClientOptions, WorkOptions
from .participant import Participant
from .pause import Pause
from .reach import Reach


@dataclass(frozen=True, slots=True)
class Taken:
    """How a client's part ended."""

    ended: bool
    """The run has ended; else the client was stopped."""
    position: int
    state_digest: bytes


def run_client(options: ClientOptions) -> None:
    """Take part in a run until it ends or the process is told to stop (SIGTERM, SIGINT)."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    def say(text: str) -> None:
        console.print(f"{options.name}: {text}")

    asyncio.run(_until_signal(options, say))


async def _until_signal(options: ClientOptions, say: Say) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await take_part(options, stop, say)


async def take_part(options: ClientOptions, stop: asyncio.Event, say: Say) -> Taken | None:
    """Take part in a run until it ends, or until stopped; None where that was before the server was reached.

    Raises:
        FedzoError: base, data or journal cannot be used, or the server refused; by name.
    """
    while True:
        reach = Reach(options.connection.address, options.patience, stop, say)
        if (journal := await open_or_begin(options, reach, say)) is None:
            return None
        with journal:
            try:
                return await _follow(options, journal, stop, say)
            except ExcerptError as error:
                say(f"the copy of the journal is given up and fetched again: {error}")
                journal.path.unlink()
            except ReplicaError as error:
                if journal.contents.start is None:
                    raise
                journal.path.unlink()
                raise ReplicaError(
                    f"{error}; the totals that this copy of the journal began with are given up: start the client "
                    "again, and they are fetched again"
                ) from error


async def _follow(options: ClientOptions, journal: Journal, stop: asyncio.Event, say: Say) -> Taken:
    """Take part with a copy of the journal."""
    genesis = journal.contents.genesis
    state = allowed_tier(options, genesis)
    planned = Planned(
        options.model,
        options,
        state=state,
        batch_size=genesis.rules.batch_size,
        max_length=genesis.task.max_length,
        directions=most_directions(genesis.rules),
        here=not get_task(genesis.task.name).head,
    )
    participant, home = make_participant(options, journal, state, say)
    for line in planned.before():
        say(line)
    async with watched_memory(options.limits.memory_bytes, stop):
        await _stay(options, participant, home, stop, say)
    for line in planned.after():
        say(line)
    taken = Taken(home.history.ended, home.replica.position, home.replica.digest())
    state = "the run has ended" if taken.ended else "stopped"
    say(f"{state} at position {taken.position}, state digest {taken.state_digest.hex()}")
    return taken


async def _stay(options: ClientOptions, participant: Participant, home: Home, stop: asyncio.Event, say: Say) -> None:
    """Take part, pauses left out, until the run's end or until stopped."""
    pause = Pause(options.directory)
    while not (stop.is_set() or home.history.ended):
        if pause.on:
            say(f"paused at position {home.replica.position}")
            await pause.over(stop)
            continue
        leave = asyncio.Event()
        watching = [asyncio.create_task(work) for work in (pause.watch(leave), _pass_on(stop, leave))]
        try:
            reach = Reach(options.connection.address, options.patience, leave, say)
            await participant.run(options.connection, reach, leave)
        finally:
            for task in watching:
                task.cancel()


async def _pass_on(event: asyncio.Event, to: asyncio.Event) -> None:
    await event.wait()
    to.set()


def allowed_tier(options: WorkOptions, genesis: Genesis) -> str:
    """Where the state goes within what this client allows.

    Raises:
        ConfigError: the run asks for more.
    """
    options.limits.check(genesis.rules)
    return tier_within(
        options.state,
        genesis.manifest,
        genesis.scope,
        itemsize=getattr(torch, options.dtype).itemsize,
        compute_copy=options.compute_copy,
        most_bytes=options.limits.memory_bytes,
    )


def make_participant(options: WorkOptions, journal: Journal, state: str, say: Say) -> tuple[Participant, Home]:
    """Load base and data and bring the replica, in a tier, to the end of the copy.

    Raises:
        FedzoError: base, data or journal cannot be used; by name.
    """
    genesis = journal.contents.genesis
    dtype = getattr(torch, options.dtype)
    device = get_device(options.device, options.backend)
    threads = options.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(options.model)
    task = get_task(genesis.task.name)(genesis.task, tokenizer, options.text_field)
    data = load_client_data(
        genesis, task, data=options.data, eval_data=options.eval_data, evaluation_batch=options.eval_batch_size
    )
    base = load_base(options.model, head_of(genesis.task, genesis.run_seed))
    base = scoped(base, genesis.scope, genesis.run_seed)
    home = Home(
        RunDirectory(options.directory),
        journal,
        base,
        backend=get_backend(options.backend),
        threads=threads,
        say=say,
        state=state,
        device=device,
    )
    lanes = LANES * options.directions_per_pass
    weights = weights_of(home.replica, options.compute_copy, options.copy_tier(state), options.directory, device)
    estimator = Estimator(base.model, home.replica, loss=task.loss, dtype=dtype, lanes_at_once=lanes, weights=weights)
    worker = Worker(home.history, home.replica, estimator, task.measure)
    participant = Participant(options.name, home, worker, data, tokenizer_digest(tokenizer), options.limits, say)
    return participant, home
