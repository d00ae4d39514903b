"""How a client's copy of the journal begins: with the genesis, or with totals in place of the first records."""

from pathlib import Path

from fedzo.errors import JournalError, ProtocolError
from fedzo.journal import End, Journal, JournalContents
from fedzo.run_directory import RunDirectory
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1.rounds_pb2_grpc import RoundsStub
from fedzo.wire.beginning import copy_of

from .connection import call_metadata, open_channel
from .home import Say, open_journal
from .options import ClientOptions, ConnectionOptions
from .reach import Reach

CALL_S = 30.0
"""Deadline of a single call."""


async def open_or_begin(options: ClientOptions, reach: Reach, say: Say) -> Journal | None:
    """The client's copy of the journal, begun where there is none; None where it was stopped before it had one.

    One of a run with a seed pool is begun anew where totals are less than the records that it lacks. A compute copy is
    made at a record that all records before it determine, so a client with one needs them all.

    Raises:
        ConfigError: another process is beginning there.
    """
    run = RunDirectory(options.directory)
    with run.exclusive():
        return await _open_or_begin(options, run.journal, reach, say)


async def _open_or_begin(options: ClientOptions, path: Path, reach: Reach, say: Say) -> Journal | None:
    excerpts = options.compute_copy == "none"
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
    return _begin(path, reply, options.connection.address, say, replace=bool(genesis_hash))


def _totals_may_help(contents: JournalContents) -> bool:
    """Is there a pool that totals could be of, and more to come?"""
    ended = contents.position > contents.first and isinstance(contents.records[-1].body, End)
    return contents.genesis.rules.pool_size > 0 and not ended


def _begin(path: Path, reply: pb.GenesisReply, address: str, say: Say, *, replace: bool) -> Journal:
    """A new copy, in the place of one that is there.

    Raises:
        ProtocolError: it cannot be made of what the server sent; what was there is as it was.
    """
    try:
        content = copy_of(reply)
    except (JournalError, ProtocolError) as error:
        raise ProtocolError(
            f"{address}: what it sent to begin with cannot be used, and nothing was written: {error}"
        ) from error
    journal = Journal.create_whole(path, content, replace=replace)
    if journal.contents.start is not None:
        say(f"begins with the totals at position {journal.contents.first}, {len(content)} bytes in place of records")
    return journal


async def _fetch_genesis(options: ConnectionOptions, request: pb.GenesisRequest) -> pb.GenesisReply:
    async with open_channel(options) as channel:
        reply: pb.GenesisReply = await RoundsStub(channel).FetchGenesis(
            request, timeout=CALL_S, metadata=call_metadata(options)
        )
        return reply
