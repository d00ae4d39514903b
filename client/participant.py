"""A client's part in a run: join, catch up, carry plans out, report, until the run ends.

Streams are read by one task; everything that touches journal, replica and model runs in one thread, in the order in
which it came. A position moves only by what was applied.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from fedzo.errors import ProtocolError
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1.rounds_pb2_grpc import RoundsStub
from fedzo.wire.handshake import Join, encode_join
from fedzo.wire.rounds import Outcome, decode_answer, decode_plan, encode_report
from fedzo.worker import ClientData, Worker

from .connection import call_metadata, open_channel
from .home import Home, Say
from .inbox import Call, Inbox
from .options import ConnectionOptions, Limits
from .reach import Reach

SESSION_S = 3600.0
"""Seconds after which a session is begun anew; no wait is longer."""
WELCOME_S = 30.0
"""Seconds for a join and its answer."""
LEAVE_S = 2.0
"""Seconds for a server to hear the last report of a client that leaves."""
Result = TypeVar("Result")


class Participant:
    """One client.

    Args:
        name: under which the run knows it.
        home: its journal and replica.
        worker: carries plans out on that replica.
        data: makes its batches, given its index.
        tokenizer_digest: of what the data was read with.
        limits: what it lets a plan ask.
        say: told what an operator should see.
    """

    def __init__(
        self,
        name: str,
        home: Home,
        worker: Worker,
        data: Callable[[int], ClientData],
        tokenizer_digest: bytes,
        limits: Limits,
        say: Say,
    ) -> None:
        self._name = name
        self._home = home
        self._worker = worker
        self._load_data = data
        self._data: ClientData | None = None
        self._tokenizer_digest = tokenizer_digest
        self._limits = limits
        self._say = say
        self._thread: ThreadPoolExecutor

    async def run(self, options: ConnectionOptions, reach: Reach, stop: asyncio.Event) -> None:
        """Take part until the journal ends, or until stopped; the state file is up to date afterwards.

        May be called again after it was stopped.

        Raises:
            HandshakeError: the server refused this client.
            ServerUnreachableError: it was gone for too long.
            ReplicaError: the replica is not what the journal states, also after a rebuild.
        """
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fedzo-work")
        try:
            while not (stop.is_set() or self._home.history.ended):
                await reach.until_done(lambda: self._session(options, reach, stop))
                if not self._home.history.ended:
                    await reach.pause("the server ended the session")
        finally:
            await self._work(self._home.save)
            self._thread.shutdown()

    async def _session(self, options: ConnectionOptions, reach: Reach, stop: asyncio.Event) -> None:
        inbox = Inbox()
        async with open_channel(options) as channel:
            call = RoundsStub(channel).Session(timeout=SESSION_S, metadata=call_metadata(options))
            tasks = [asyncio.create_task(work) for work in (inbox.listen(call), inbox.end_at(stop))]
            try:
                async with asyncio.timeout(WELCOME_S):
                    await _write(call, encode_join(self.join()))
                    messages = await inbox.take()
                reach.reached()
                while messages and not stop.is_set():
                    await self._answer(call, messages, stop)
                    messages = [] if self._home.history.ended else await inbox.take()
                if stop.is_set():
                    await _leave(call, tasks[0])
            finally:
                for task in tasks:
                    task.cancel()
                call.cancel()

    async def _answer(self, call: Call, messages: Sequence[pb.ServerMessage], stop: asyncio.Event) -> None:
        """Take over what the server said, and do what it asks for last."""
        for plan in await self._work(self.catch_up, messages):
            if not stop.is_set():
                await _write(call, await self._work(self.carry_out, plan))

    async def _work(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def catch_up(self, messages: Sequence[pb.ServerMessage]) -> list[pb.Plan]:
        """Move to where the server is, in one go; what is to be done there.

        That is the plan for that position, if there is one; then, in an asynchronous run, the client's own, unless the
        training is over.
        """
        shared: pb.Plan | None = None
        own: pb.Plan | None = None
        for message in messages:
            for answer in map(decode_answer, message.answers):
                if answer.outcome is Outcome.REBUILD:
                    self._home.rebuild(answer.reason)
                elif answer.outcome is Outcome.REFUSED:
                    self._say(f"the {answer.purpose} report of round {answer.round} was refused: {answer.reason}")
            if message.steps:
                shared = None
            if message.HasField("plan") and self._is_own(message.plan):
                own = message.plan
            elif message.HasField("plan"):
                shared = message.plan
        self._home.follow([step for message in messages for step in message.steps])
        if self._home.history.ended or self._home.history.round >= self._home.genesis.rules.rounds:
            own = None
        return [plan for plan in (shared, own) if plan is not None]

    def _is_own(self, plan: pb.Plan) -> bool:
        """Is it this client's alone, to be done wherever it is?"""
        return self._home.genesis.rules.asynchronous and plan.purpose == pb.PURPOSE_TRAIN

    def carry_out(self, message: pb.Plan) -> pb.ClientMessage:
        """Do what a plan asks of this client; its report.

        Raises:
            ProtocolError: the plan is for another position, or not one of this run's.
        """
        home = self._home
        client = home.history.clients.get(self._name)
        elsewhere = message.position != home.replica.position and not self._is_own(message)
        if client is None or elsewhere:
            raise ProtocolError(
                f"a plan is for position {message.position}, this client is at {home.replica.position} and "
                f"{'not ' if client is None else ''}enrolled; the server does not follow its own journal"
            )
        plan = decode_plan(message, client, home.replica.record_hash)
        self._limits.check_plan(plan, home.history)
        if self._data is None:
            self._data = self._load_data(client)
        return encode_report(self._worker.carry_out(plan, client, self._data))

    def join(self) -> Join:
        """Who this client is and where it stands."""
        home = self._home
        return Join(
            name=self._name,
            genesis_hash=home.genesis_hash,
            base_digest=home.base_digest,
            manifest_digest=home.replica.manifest.digest(),
            tokenizer_digest=self._tokenizer_digest,
            task=home.genesis.task.name,
            position=home.replica.position,
            record_hash=home.replica.record_hash,
        )


async def _leave(call: Call, listening: asyncio.Task[None]) -> None:
    """Say that nothing more will come and wait until the server has heard it, and so the last report."""
    with suppress(asyncio.InvalidStateError, TimeoutError):
        await call.done_writing()
        await asyncio.wait_for(listening, LEAVE_S)


async def _write(call: Call, message: pb.ClientMessage) -> None:
    """Send, unless the stream is over; why it is, reading it says."""
    with suppress(asyncio.InvalidStateError):
        await call.write(message)
