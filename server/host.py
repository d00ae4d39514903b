"""The host of a run: one task that owns the coordinator and the journal, fed through a mailbox.

Streams put what they hear into the mailbox and send what their session holds; nothing else touches the run's state.
A record is durable before anyone is told of it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from math import inf

import grpc

from fedzo.coordinator import (
    Accept,
    Announce,
    Append,
    Appended,
    Connected,
    Coordinator,
    Decision,
    Disconnected,
    Event,
    Finish,
    Refuse,
    Tick,
)
from fedzo.errors import HandshakeError, JournalBehindError, ProtocolError
from fedzo.journal import Journal, Record
from fedzo.journal.view import said_of_end
from fedzo.v1 import rounds_pb2 as pb
from fedzo.wire.handshake import Join, check_join
from fedzo.wire.rounds import Outcome, decode_report

from .audience import Audience
from .beginning import Beginnings
from .feed import Feed
from .gathering import Gathering
from .mail import Joined, Left, Mail, Mailbox, Quiet, Reported, Stop
from .session import ClientSession

UNREAD_ANSWERS = 64
"""A client that reports more often than this without reading an answer is sent away."""
QUIET_S = 0.05
"""Seconds without a message after which clients are told that their reports count, also without a record."""


class Host:
    """One run and the clients that are connected to it.

    Args:
        journal: open for writing.
        start_with: clients that must be there before the first record is written.
        gather_s: seconds that a resumed run waits for all its clients before it goes on without the missing ones.
        watch: told of each record, when it is durable.
        say: told what an operator should see.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        start_with: int,
        gather_s: float,
        watch: Callable[[int, Record], None],
        say: Callable[[str], None],
    ) -> None:
        self.feed = Feed(journal)
        self.contents = journal.contents
        self.start_with = start_with
        self.deadline_s = 0.0
        """Monotonic time at which the plan ends."""
        self.halted = ""
        """Why nothing is planned any more; empty while all is well."""
        self.halting = asyncio.Event()
        """Set when that happens."""
        self.ended = asyncio.Event()
        """Set when the journal has its end."""
        self.stopped = False
        """Set when `run` has ended."""
        self._journal = journal
        self._coordinator = Coordinator(journal.contents)
        self.history = self._coordinator.history
        self.beginnings = Beginnings(journal, self.history)
        self.audience = Audience(self.history, say)
        self._watch = watch
        self._say = say
        self._gathering = Gathering(start_with, self.audience.names, resumed=journal.position > 0, wait_s=gather_s)
        self._mail = Mailbox()
        self._unwatched: list[tuple[int, Record]] = []

    # ── what streams call ───────────────────────────────────────────────────────────────────────────

    async def join(self, join: Join) -> ClientSession:
        """Let a client in.

        Raises:
            HandshakeError: it may not come in.
            JournalBehindError: it shows that records were lost; the run is halted.
        """
        session: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        self._mail.put(Joined(join, session))
        try:
            return await session
        except asyncio.CancelledError:
            if session.done() and not session.cancelled() and session.exception() is None:
                self.leave(session.result())
            raise

    def leave(self, session: ClientSession) -> None:
        """A stream ended."""
        self._mail.put(Left(session))

    async def report(self, session: ClientSession, message: pb.ClientMessage) -> None:
        """A client said something; returns when it was dealt with, so that each has one at a time in the mailbox."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._mail.put(Reported(session, message, done))
        await done

    def stop(self) -> None:
        """Let what is being written become durable, and end."""
        self._mail.put(Stop())

    # ── the task ────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Serve the run until `stop`.

        Raises:
            JournalWriteError: the disk refused a record.
        """
        if self.history.ended:
            self._say(f"{said_of_end(self.contents)}; clients that come late are served")
            self._finish()
        try:
            while not isinstance(message := await self._next(), Stop):
                await self._handle(message)
        finally:
            self.stopped = True
            self.audience.close(grpc.StatusCode.UNAVAILABLE, "the server is stopping; reconnect when it is back")
            self.feed.wake()

    async def _next(self) -> Mail | Tick | Quiet:
        due_s = self.deadline_s if self.audience.plan is not None else self._gathering.due_s
        return await self._mail.take(due_s, QUIET_S if self.audience.withholds else inf)

    async def _handle(self, message: Joined | Left | Reported | Tick | Quiet) -> None:
        match message:
            case Joined(join, reply):
                await self._joined(join, reply)
            case Left(session):
                if self.audience.dismiss(session):
                    await self._tell_coordinator(Disconnected(session.name))
                    self._say(f"{session.name} left at position {session.position}")
            case Reported(session, content, done):
                await self._reported(session, content)
                if not done.done():  # its stream may be over
                    done.set_result(None)
            case Quiet():
                self.audience.release()
            case Tick():
                await self._due(message)

    async def _due(self, tick: Tick) -> None:
        plan = self.audience.plan
        if plan is None:
            await self._gathered()
        else:
            self.audience.about = (plan.purpose, plan.round)
            await self._tell_coordinator(tick)

    async def _joined(self, join: Join, reply: asyncio.Future[ClientSession]) -> None:
        if reply.cancelled():
            return
        try:
            if self.halted:
                raise JournalBehindError(self.halted)
            check_join(join, self.contents)
        except JournalBehindError as error:
            self._halt(str(error))
            reply.set_exception(error)
        except HandshakeError as error:
            self._say(f"refused: {error}")
            reply.set_exception(error)
        else:
            reply.set_result(self.audience.admit(join.name, join.position))
            self._say(f"{join.name} joined at position {join.position} of {self.contents.position}")
            if self._gathering.over:
                await self._tell_coordinator(Connected((join.name,)))
            elif self._gathering.complete(self.audience.present):
                await self._gathered()

    async def _gathered(self) -> None:
        """Go on with those who are there."""
        self._gathering.over = True
        await self._tell_coordinator(Connected(self.audience.present))

    async def _reported(self, session: ClientSession, message: pb.ClientMessage) -> None:
        try:
            client = self.history.clients.get(session.name)
            if client is None:
                raise ProtocolError(f"client {session.name!r} is not enrolled yet; wait for a plan")
            report = decode_report(message, client)
        except ProtocolError as error:
            session.close(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            return
        if len(session.answers) > UNREAD_ANSWERS:
            session.close(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"client {session.name!r} reports without reading the answers"
            )
            return
        self.audience.about = (report.purpose, report.round)
        await self._tell_coordinator(report)

    # ── decisions ───────────────────────────────────────────────────────────────────────────────────

    async def _tell_coordinator(self, event: Event) -> None:
        if not self.halted:
            await self._carry_out(self._coordinator.handle(event, time.monotonic()))

    async def _carry_out(self, decisions: list[Decision]) -> None:
        """Do what was decided, and what follows from that at once."""
        queue = deque(decisions)
        while queue:
            match queue.popleft():
                case Announce(plan):
                    self.deadline_s = time.monotonic() + plan.deadline_s
                    self.audience.announce(plan)
                case Append(record):
                    queue += await self._append(record)
                case Accept(client):
                    self.audience.answer(client, Outcome.ACCEPTED)
                case Refuse(client, reason, rebuild):
                    self.audience.answer(client, Outcome.REBUILD if rebuild else Outcome.REFUSED, reason)
                case Finish():
                    self._finish()
        if self._unwatched:
            await asyncio.sleep(0)  # clients first: their streams send what they were just told
            for position, record in self._unwatched:
                self._watch(position, record)
            self._unwatched = []

    async def _append(self, record: Record) -> list[Decision]:
        self.audience.plan = None
        writing = asyncio.get_running_loop().run_in_executor(None, self._journal.append, record)
        self.feed.prepare(record)
        record_hash = await writing
        self.feed.appended()
        self.audience.appended(record)
        self._unwatched.append((self.feed.position, record))
        return self._coordinator.handle(Appended(record, record_hash), time.monotonic())

    def _finish(self) -> None:
        self.ended.set()
        self.feed.wake()
        self.audience.tell()

    def _halt(self, reason: str) -> None:
        if not self.halted:
            self._say(f"halted: {reason}")
        self.halted = reason
        self.halting.set()
        self.audience.close(grpc.StatusCode.UNAVAILABLE, reason)
