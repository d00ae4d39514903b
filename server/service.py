"""The gRPC service: passes messages between streams and the host, and decides nothing."""

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
from google.protobuf.message import DecodeError

from fedzo.errors import HandshakeError, JournalBehindError, ProtocolError
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1.rounds_pb2_grpc import RoundsServicer, add_RoundsServicer_to_server
from fedzo.wire.handshake import decode_join
from fedzo.wire.rounds import purpose_number

from .access import Access
from .host import Host
from .session import ClientSession

JOIN_S = 10.0
"""Seconds that a stream may be open without a join."""
WRITE_S = 10.0
"""Seconds in which a client takes a message off the server's hands."""
SERVICE = pb.DESCRIPTOR.services_by_name["Rounds"].full_name
Code = grpc.StatusCode


class Service(RoundsServicer):
    """See `protos/fedzo/v1/rounds.proto`.

    Args:
        host: of the run.
        access: who may come in.
    """

    def __init__(self, host: Host, access: Access) -> None:
        self._host = host
        self._access = access

    async def FetchGenesis(  # noqa: N802
        self, request: pb.GenesisRequest, context: grpc.aio.ServicerContext
    ) -> pb.GenesisReply:
        """The journal's first frame, and what may stand in place of the next."""
        await self._caller(context)
        return self._host.beginnings.reply(request)

    async def Session(  # noqa: N802
        self, requests: AsyncIterator[pb.ClientMessage], context: grpc.aio.ServicerContext
    ) -> None:
        """A client's stay."""
        caller = await self._caller(context)
        session = await self._admit(requests, context, caller)
        listening = asyncio.create_task(self._listen(requests, session))
        try:
            while (message := await session.next_message(self._host.feed, self._host.ended)) is not None:
                async with asyncio.timeout(WRITE_S):
                    await context.write(message)
        except TimeoutError:
            session.close(Code.DEADLINE_EXCEEDED, f"nothing was read for {WRITE_S:g} seconds")
        finally:
            listening.cancel()
            self._host.leave(session)
        if session.closing is not None and session.closing[0] is not Code.OK:
            await context.abort(*session.closing)

    async def Follow(  # noqa: N802
        self, request: pb.FollowRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.Records]:
        """Records from a position on, until the run ends."""
        await self._caller(context)
        feed, hashes, position = self._host.feed, self._host.contents.hashes, request.position
        if position > feed.position or hashes[position] != request.record_hash:
            await context.abort(
                Code.OUT_OF_RANGE,
                f"position {position} with record {request.record_hash.hex()[:16]}… is not on this journal, which ends "
                f"at {feed.position}; follow from position 0 and the genesis hash",
            )
        while True:
            if steps := feed.steps_from(position):
                position += len(steps)
                yield pb.Records(steps=steps)
            elif self._host.ended.is_set():
                return
            elif self._host.stopped:
                await context.abort(Code.UNAVAILABLE, "the server is stopping; follow again when it is back")
            else:
                await feed.moved()

    async def Status(  # noqa: N802
        self, request: pb.StatusRequest, context: grpc.aio.ServicerContext
    ) -> pb.StatusReply:
        """How the run stands."""
        await self._caller(context)
        return status_of(self._host)

    async def _caller(self, context: grpc.aio.ServicerContext) -> str | None:
        try:
            return self._access.name_of(context)
        except HandshakeError as error:
            await context.abort(Code.UNAUTHENTICATED, str(error))
            raise

    async def _admit(
        self, requests: AsyncIterator[pb.ClientMessage], context: grpc.aio.ServicerContext, caller: str | None
    ) -> ClientSession:
        try:
            async with asyncio.timeout(JOIN_S):
                join = decode_join(await anext(aiter(requests)))
            if caller not in (None, join.name):
                raise HandshakeError(f"client {join.name!r} came with the token or certificate of {caller!r}")
            return await self._host.join(join)
        except JournalBehindError as error:
            await context.abort(Code.UNAVAILABLE, str(error))
        except HandshakeError as error:
            await context.abort(Code.FAILED_PRECONDITION, str(error))
        except TimeoutError:  # the client tries again: a machine may be that slow
            await context.abort(Code.DEADLINE_EXCEEDED, f"no join came within {JOIN_S:g} seconds")
        except StopAsyncIteration:
            await context.abort(Code.INVALID_ARGUMENT, "the stream ended before a join came")
        except DecodeError as error:
            await context.abort(Code.INVALID_ARGUMENT, f"the first message is no ClientMessage: {error}")
        raise AssertionError

    async def _listen(self, requests: AsyncIterator[pb.ClientMessage], session: ClientSession) -> None:
        """Pass reports on, one at a time, until the client has no more to say."""
        try:
            async for message in requests:
                await self._host.report(session, message)
                if session.closing is not None:
                    return
        except (DecodeError, ProtocolError) as error:
            session.close(Code.INVALID_ARGUMENT, f"a message is no ClientMessage: {error}")
        else:
            session.close(Code.OK, "")


def add_service(service: Service, server: grpc.aio.Server) -> None:
    """Register it; a session's messages to the client come serialised, since most are the same for all clients."""
    add_RoundsServicer_to_server(service, server)
    session = grpc.stream_stream_rpc_method_handler(
        service.Session, request_deserializer=pb.ClientMessage.FromString, response_serializer=None
    )
    server.add_registered_method_handlers(SERVICE, {"Session": session})


def status_of(host: Host) -> pb.StatusReply:
    """How a run stands, as the wire has it."""
    contents, audience, history = host.contents, host.audience, host.history
    needed = contents.genesis.rules.quorum if contents.position else host.start_with
    reply = pb.StatusReply(
        position=contents.position,
        record_hash=contents.hashes[-1],
        genesis_hash=contents.hashes[0],
        round=history.round,
        rounds=contents.genesis.rules.rounds,
        ended=host.ended.is_set(),
        halted=host.halted,
        loss=history.loss or 0.0,
        awaited=max(0, needed - len(audience)),
    )
    if (plan := audience.plan) is not None:
        reply.purpose = purpose_number(plan.purpose)
        reply.asked, reply.answered = len(plan.cohort), len(audience.answered)
        reply.deadline_s = max(0.0, host.deadline_s - time.monotonic())
    for name in sorted({*audience.names, *audience.present}):
        session = audience.get(name)
        reply.clients.add(name=name, connected=session is not None, position=session.position if session else 0)
    return reply
