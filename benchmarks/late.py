"""Bytes that a client which comes late is sent: all records, or totals of the seed pool and the records after them.

    python -m benchmarks.late [--json FILE] [--clients 8] [--rounds 500] [--pool 1024] [--attest-every 50]

Clients without a model play a run of `fedkseed` over loopback, one scalar a client and round. Then one comes that has
nothing, through a TCP relay, once for each way. Neither has TLS around it.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import grpc
from fedzo_client.connection import CHANNEL_OPTIONS
from fedzo_server.access import Access
from fedzo_server.serving import Serving, serving
from rich.console import Console
from rich.table import Table

from benchmarks.light_clients import ALL_S, LightClient, light_genesis, run_all
from benchmarks.relay import Relay
from benchmarks.report import environment
from fedzo.journal import Journal, JournalContents
from fedzo.run_directory import RunDirectory
from fedzo.v1 import journal_pb2
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1.rounds_pb2_grpc import RoundsStub
from fedzo.wire.handshake import Join, encode_join


@dataclass(frozen=True, slots=True)
class Line:
    """What one client was sent."""

    way: str
    begins_at: int
    """Position."""
    records: int
    beginning: int
    """Bytes of totals and the record after them, payload."""
    steps: int
    """Bytes of the other records, payload."""
    total: int
    """Bytes with all around them, the genesis too."""


def main() -> int:
    """Prints a table and writes it as JSON."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        lines = asyncio.run(_measure(Path(scratch), arguments))
    table = Table(title=f"Bytes for one who comes after {arguments.rounds} rounds of {arguments.clients} clients")
    for heading in ("way", "begins at", "records", "totals", "records, bytes", "with all around"):
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(line.way, *(f"{number:,}" for number in list(asdict(line).values())[1:]))
    Console(width=120, highlight=False).print(table)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    found = {"environment": environment(1), "lines": [asdict(line) for line in lines]}
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.late", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "late.json")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--pool", type=int, default=1024)
    parser.add_argument("--attest-every", type=int, default=50)
    return parser.parse_args()


async def _measure(scratch: Path, arguments: argparse.Namespace) -> list[Line]:
    run = RunDirectory(scratch)
    genesis = light_genesis(arguments.clients, arguments.rounds)
    rules = replace(genesis.rules, method="fedkseed", pool_size=arguments.pool, attest_every=arguments.attest_every)
    with Journal.create(run.journal, replace(genesis, rules=rules)) as journal:
        start = JournalContents(genesis=journal.contents.genesis, hashes=journal.contents.hashes[:1])
        async with _served(run, journal, arguments.clients) as served:
            address = f"127.0.0.1:{served.port}"
            async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
                await run_all([LightClient(channel, f"client-{k}", start) for k in range(arguments.clients)])
            return [await _join_late(served, start, totals=totals) for totals in (False, True)]


def _served(run: RunDirectory, journal: Journal, clients: int) -> AbstractAsyncContextManager[Serving]:
    return serving(
        run,
        journal,
        listen="127.0.0.1:0",
        start_with=clients,
        gather_s=0.0,
        access=Access(None, certificates=False),
        credentials=None,
        show=lambda record: None,
        say=lambda text: None,
    )


async def _join_late(served: Serving, contents: JournalContents, *, totals: bool) -> Line:
    """Begin with nothing and read on to the run's end."""
    async with Relay(served.port) as relay:
        async with grpc.aio.insecure_channel(relay.address, options=CHANNEL_OPTIONS) as channel:
            stub = RoundsStub(channel)
            reply = await stub.FetchGenesis(pb.GenesisRequest(totals=totals), timeout=ALL_S)
            position, digest = 0, contents.hashes[0]
            if reply.start:
                position = journal_pb2.Start.FromString(reply.start).position + 1
                digest = reply.first.record_hash
            call = stub.Session(timeout=ALL_S)
            await call.write(_join(contents, position, digest))
            size = records = 0
            while (message := await call.read()) is not grpc.aio.EOF:
                records += len(message.steps)
                size += sum(step.ByteSize() for step in message.steps)
        beginning = len(reply.start) + (reply.first.ByteSize() if reply.start else 0)
        return Line("totals" if totals else "records", position, records, beginning, size, relay.down_bytes)


def _join(contents: JournalContents, position: int, digest: bytes) -> pb.ClientMessage:
    genesis = contents.genesis
    return encode_join(
        Join(
            name="late",
            genesis_hash=contents.hashes[0],
            base_digest=genesis.base_digest,
            manifest_digest=genesis.manifest.digest(),
            tokenizer_digest=genesis.task.tokenizer_digest,
            task=genesis.task.name,
            position=position,
            record_hash=digest,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
