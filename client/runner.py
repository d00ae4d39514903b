"""Runs `fedzo client`: from options to a part in a run."""

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from fedzo.checkpoint import head_of, load_base, load_tokenizer, tokenizer_digest
from fedzo.errors import ExcerptError, JournalError, ProtocolError, ReplicaError
from fedzo.estimate import LANES, Estimator, weights_of
from fedzo.journal import End, Journal, JournalContents
from fedzo.noise import get_backend
from fedzo.run_directory import RunDirectory
from fedzo.scopes.base import scoped
from fedzo.tasks import get_task
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1.rounds_pb2_grpc import RoundsStub
from fedzo.wire.beginning import copy_of
from fedzo.worker import Worker

from .connection import call_metadata, open_channel
from .data import load_client_data
from .home import Home, Say, open_journal
from .memory import tier_within, watched_memory
from .options import ClientOptions, ConnectionOptions, WorkOptions
from .participant import Participant
from .pause import Pause
from .reach import Reach

CALL_S = 30.0
"""Deadline of a single call."""


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
    reach = Reach(options.connection.address, options.patience_s, stop, say)
    while (journal := await _journal(options, reach, say)) is not None:
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
    return None


async def _follow(options: ClientOptions, journal: Journal, stop: asyncio.Event, say: Say) -> Taken:
    """Take part with a copy of the journal."""
    participant, home = make_participant(options, journal, say)
    async with watched_memory(options.limits.memory_bytes, stop):
        await _stay(options, participant, home, stop, say)
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
            reach = Reach(options.connection.address, options.patience_s, leave, say)
            await participant.run(options.connection, reach, leave)
        finally:
            for task in watching:
                task.cancel()


async def _pass_on(event: asyncio.Event, to: asyncio.Event) -> None:
    await event.wait()
    to.set()


async def _journal(options: ClientOptions, reach: Reach, say: Say) -> Journal | None:
    """The client's copy of the journal, begun with what the server has to begin with where there is none.

    One of a run with a seed pool is begun anew where totals are less than the records that it lacks. A compute copy is
    made at a record that all records before it determine, so a client with one needs them all.
    """
    options.directory.mkdir(parents=True, exist_ok=True)
    path, excerpts = RunDirectory(options.directory).journal, options.compute_copy == "none"
    request, genesis_hash = pb.GenesisRequest(totals=excerpts, name=options.name), b""
    journal = open_journal(path, say, excerpts=excerpts)
    if journal is not None:
        if not (excerpts and _totals_may_help(journal.contents)):
            return journal
        request.position, request.record_hash = journal.position, journal.record_hash
        genesis_hash = journal.contents.hashes[0]
        journal.close()
    reply = await reach.until_done(lambda: _fetch_genesis(options.connection, request))
    if reply is None:
        return None
    if genesis_hash and (not reply.start or reply.record_hash != genesis_hash):
        return Journal.open(path, excerpts=True)
    return _begin(path, reply, options.connection.address, say)


def _totals_may_help(contents: JournalContents) -> bool:
    """Is there a pool that totals could be of, and more to come?"""
    ended = contents.position > contents.first and isinstance(contents.records[-1].body, End)
    return contents.genesis.rules.pool_size > 0 and not ended


def _begin(path: Path, reply: pb.GenesisReply, address: str, say: Say) -> Journal:
    """A new copy, in the place of one that may be there.

    Raises:
        ProtocolError: it cannot be made of what the server sent; what was there is as it was.
    """
    try:
        content = copy_of(reply)
    except (JournalError, ProtocolError) as error:
        raise ProtocolError(
            f"{address}: what it sent to begin with cannot be used, and nothing was written: {error}"
        ) from error
    path.unlink(missing_ok=True)
    journal = Journal.create_whole(path, content)
    if journal.contents.start is not None:
        say(f"begins with the totals at position {journal.contents.first}, {len(content)} bytes in place of records")
    return journal


async def _fetch_genesis(options: ConnectionOptions, request: pb.GenesisRequest) -> pb.GenesisReply:
    async with open_channel(options) as channel:
        reply: pb.GenesisReply = await RoundsStub(channel).FetchGenesis(
            request, timeout=CALL_S, metadata=call_metadata(options)
        )
        return reply


def make_participant(options: WorkOptions, journal: Journal, say: Say) -> tuple[Participant, Home]:
    """Load base and data and bring the replica to the end of the copy.

    Raises:
        ConfigError: the run asks for more than this client allows.
        FedzoError: base, data or journal cannot be used; by name.
    """
    genesis = journal.contents.genesis
    options.limits.check(genesis.rules)
    dtype = getattr(torch, options.dtype)
    state = tier_within(
        options.state,
        genesis.manifest,
        genesis.scope,
        itemsize=dtype.itemsize,
        compute_copy=options.compute_copy,
        most_bytes=options.limits.memory_bytes,
    )
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
    )
    lanes = LANES * options.directions_per_pass
    weights = weights_of(home.replica, options.compute_copy, state, options.directory)
    estimator = Estimator(base.model, home.replica, loss=task.loss, dtype=dtype, lanes_at_once=lanes, weights=weights)
    worker = Worker(home.history, home.replica, estimator, task.measure)
    participant = Participant(options.name, home, worker, data, tokenizer_digest(tokenizer), options.limits, say)
    return participant, home
