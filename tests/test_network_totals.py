"""A client that comes late begins with totals where that is less: real servers, clients and sockets."""

import asyncio
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from commands import fedzo, refused
from federation import OPTIONS
from fedzo_client.home import Home
from fedzo_client.options import ClientOptions, ConnectionOptions
from fedzo_client.runner import take_part
from fedzo_server.beginning import Beginnings
from journals import payloads_of
from network import CALL_S, both

from fedzo.base.checkpoint import load_base
from fedzo.coordinator import History
from fedzo.errors import ConfigError, ProtocolError, ReplicaError
from fedzo.journal import Journal, read_journal
from fedzo.journal.genesis_codec import decode_start
from fedzo.noise import get_backend
from fedzo.run_directory import RunDirectory
from fedzo.v1 import journal_pb2
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1.rounds_pb2_grpc import RoundsServicer, RoundsStub, add_RoundsServicer_to_server
from fedzo.wire.beginning import copy_of

POOL = {"method": "fedkseed", "pool-size": 16, "attest-every": 4, "eval-every": 0, "lr": 1e-3}
BEGINS = "begins with the totals at position"


def starts(said: str) -> list[int]:
    """Where a client began with totals."""
    return [int(position) for position in re.findall(rf"{BEGINS} (\d+)", said)]


# ── processes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_late_client_takes_part_from_totals_on_whatever_happens_to_it(federation):
    """With one of two clients away nothing is planned after the deadline, so the late one may take its time."""
    found = federation(rounds=48, clients=2, quorum=2, deadline=8, **POOL).start()
    found.wait_for_position(24)
    found.clients[1].kill()
    client = found.start_client(2)
    client.wait_for(BEGINS)
    (first,) = starts(client.said)
    assert first >= 20
    found.wait_for_position(30)
    client.kill()
    where = read_journal(found.directory(2) / "journal").position

    client = found.start_client(2)
    found.wait_for_joins(2, 2)
    assert found.joins(2) == [first + 1, where]
    assert BEGINS not in client.said, "what it has is enough"
    found.wait_for_position(where + 4)
    client.kill()

    journal = found.directory(2) / "journal"
    content = bytearray(journal.read_bytes())
    content[content.index(read_journal(journal).start.record_hash) + 40] ^= 1
    journal.write_bytes(content)
    client = found.start_client(2)
    client.wait_for(BEGINS)
    assert "the copy of the journal is given up and fetched again" in client.said
    assert starts(client.said)[0] > first
    found.start_client(1)
    found.finish()
    assert read_journal(journal).first == starts(client.said)[0]
    assert BEGINS in found.clients[1].said, "it was away for longer than totals are large"


@pytest.mark.slow
def test_a_late_client_begins_anew_where_the_run_goes_back_before_its_totals(federation, nursery):
    found = federation(rounds=36, clients=2, quorum=2, deadline=8, **POOL).start()
    found.wait_for_position(20)
    found.clients[1].kill()
    client = found.start_client(2)
    client.wait_for(BEGINS)
    found.wait_for_position(25)
    found.server.signal(signal.SIGTERM)
    assert found.server.wait() == 0
    assert nursery.start("rollback", found.run, "--to", starts(client.said)[0]).wait() == 0
    found.start_server()
    client.wait_for("has to be begun anew")
    found.start_client(1)
    found.finish()
    assert client.said.count("the copy of the journal is given up and fetched again") == 1
    assert read_journal(found.directory(2) / "journal").first != starts(client.said)[0]


@pytest.mark.slow
def test_a_late_client_of_a_run_without_rounds_begins_with_totals_too(federation):
    rules = POOL | {"buffer": 2, "max-staleness": 16, "eval-every": 6}
    found = federation(rounds=120, clients=2, quorum=1, **rules).start()
    found.wait_for_position(30)
    client = found.start_client(2)
    client.wait_for(BEGINS)
    found.finish()


# ── the wire ────────────────────────────────────────────────────────────────────────────────────────


def played(host, rounds: int, **rules):
    """A hosted run of two clients without a model after some rounds; it waits for the next report."""
    hosted = host(rounds=rounds + 40, attest_every=10, deadline_s=3600.0, **rules)
    clients = both(hosted)
    for _ in range(rounds):
        plans = [client.plan() for client in clients]
        for number, (client, plan) in enumerate(zip(clients, plans, strict=True)):
            client.stream.send(client.report(plan, client=number))
    for client in clients:
        client.plan()
    return hosted


def test_totals_are_a_small_part_of_the_records_and_a_follower_goes_on_from_them(host, capsys):
    pool = 16
    hosted = played(host, 125, method="fedkseed", pool_size=pool)
    contents = hosted.contents
    with grpc.insecure_channel(hosted.address) as channel:
        stub = RoundsStub(channel)
        reply = stub.FetchGenesis(pb.GenesisRequest(totals=True), timeout=CALL_S)
        assert stub.FetchGenesis(pb.GenesisRequest(), timeout=CALL_S).start == b"", "who does not ask gets none"
        start = decode_start(contents.genesis, reply.start)
        assert start.record_hash == contents.hashes[start.position]
        first = pb.FollowRequest(position=0, record_hash=contents.hashes[0])
        records = followed(stub, first, contents.position)
        later = pb.FollowRequest(position=start.position + 1, record_hash=reply.first.record_hash)
        rest = followed(stub, later, contents.position - start.position - 1)
    totals = len(reply.start) + reply.first.ByteSize()
    assert totals <= 16 * pool + 1000
    assert totals + rest[1] < records[1] / 8
    assert rest[0] == contents.hashes[start.position + 2 :]


def followed(stub: RoundsStub, request: pb.FollowRequest, count: int) -> tuple[list[bytes], int]:
    """Record hashes and bytes of so many records."""
    hashes: list[bytes] = []
    size = 0
    stream = stub.Follow(request, timeout=CALL_S)
    while len(hashes) < count:
        message = next(stream)
        size += message.ByteSize()
        hashes += [step.record_hash for step in message.steps]
    stream.cancel()
    return hashes, size


def test_a_run_without_a_pool_gives_the_records(host):
    hosted = played(host, 30)
    with grpc.insecure_channel(hosted.address) as channel:
        reply = RoundsStub(channel).FetchGenesis(pb.GenesisRequest(totals=True), timeout=CALL_S)
    assert (reply.start, reply.HasField("first")) == (b"", False)


# ── a server that sends what it should not ──────────────────────────────────────────────────────────


class Liar(RoundsServicer):
    """A server that knows one answer."""

    def __init__(self, reply: pb.GenesisReply) -> None:
        self.asked: list[pb.GenesisRequest] = []
        self._reply = reply

    def FetchGenesis(self, request, context):  # noqa: N802
        self.asked.append(request)
        return self._reply


@contextmanager
def serving(liar: Liar) -> Iterator[str]:
    """Its address."""
    server = grpc.server(ThreadPoolExecutor(2))
    add_RoundsServicer_to_server(liar, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait(CALL_S)


@pytest.fixture(scope="module")
def pool_run(nursery, demo, tmp_path_factory) -> Path:
    """A run with a pool, whose server could send totals."""
    out = tmp_path_factory.mktemp("pool") / "run"
    given = OPTIONS | POOL | {"clients": 2, "rounds": 24, "threads": 1, "out": out, "data": demo.data}
    parts = [part for name, value in given.items() for part in (f"--{name}", value)]
    simulated = nursery.start("simulate", "--model", demo.model, *parts)
    assert simulated.wait() == 0, simulated.said
    return out


def reply_of(run: Path, position: int = 26) -> pb.GenesisReply:
    """What its server would have answered at a position."""
    with Journal.open(run / "journal") as journal:
        contents, history = journal.contents, History(journal.contents)
        for record, digest in zip(contents.records[:position], contents.hashes[1 : position + 1], strict=True):
            history.apply(record, digest)
        reply = Beginnings(journal, history).reply(pb.GenesisRequest(totals=True))
    assert reply.start
    return reply


def test_a_replica_that_goes_wrong_is_rebuilt_from_base_and_totals(pool_run, demo, tmp_path):
    contents, payloads = read_journal(pool_run / "journal"), payloads_of(pool_run / "journal")
    journal, said = Journal.create_whole(tmp_path / "journal", copy_of(reply_of(pool_run, 17))), []
    with journal:
        base, backend = load_base(demo.model), get_backend("auto")
        home = Home(RunDirectory(tmp_path), journal, base, backend=backend, threads=1, say=said.append)
        assert home.replica.position == journal.position == 17
        steps = [
            pb.Step(payload=payload, record_hash=digest)
            for payload, digest in zip(payloads[18:], contents.hashes[18:], strict=True)
        ]
        home.replica.state[7] += 1
        home.follow(steps)
    assert said[-1] == f"rebuilt from base and {contents.position - 16} records"
    assert home.replica.digest() == contents.records[-1].state_digest


def test_a_late_clients_directory_gives_the_model_that_the_whole_journal_gives(pool_run, demo, tmp_path):
    whole, late = read_journal(pool_run / "journal"), tmp_path / "late"
    late.mkdir()
    with Journal.create_whole(late / "journal", copy_of(reply_of(pool_run, 17))) as journal:
        for record in whole.records[journal.position :]:
            journal.append(record)
        assert journal.contents.first == 16
    digest = whole.records[-1].state_digest.hex()
    assert "give the base with --base" in refused("export", late, "--out", tmp_path / "model")
    given = ("--base", demo.model)
    assert f"state digest {digest}" in fedzo("export", late, "--out", tmp_path / "model", *given).stdout
    replayed = fedzo("replay", late, *given).stdout
    assert f"from the totals at position 16 on, {whole.position - 16} records replayed" in replayed
    assert digest in replayed
    rows = ("--data", demo.data, "--rows", 8)
    assert fedzo("evaluate", late, *given, *rows).stdout == fedzo("evaluate", pool_run, *rows).stdout
    for command in (("influence", late, *rows), ("replay", late, "--without", "client-0")):
        assert "begins with the totals at position 16, which all clients made" in refused(*command, *given)
    assert "the run's server has all records" in refused("journal", "clients", late)


def ask(liar: Liar, demo, directory: Path, compute_copy: str = "none") -> None:
    """Be its client."""
    rows = directory.parent / "rows.txt"
    rows.write_text("The hens lay eggs. The cow gives milk.\n" * 40)
    with serving(liar) as address:
        options = ClientOptions(
            connection=ConnectionOptions(address=address),
            max_steps=64,
            max_batch=64,
            max_epsilon=1.0,
            model=demo.model,
            data=str(rows),
            directory=directory,
            name="late",
            eval_data="none",
            threads=1,
            state="host",
            compute_copy=compute_copy,
            patience=0.0,
        )
        asyncio.run(take_part(options, asyncio.Event(), lambda text: None))


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda message: message.totals.append(1), "has 17 totals; expected 16"),
        (lambda message: message.ClearField("totals"), "has 0 totals; expected 16"),
        (lambda message: setattr(message, "record_hash", bytes(32)), "does not follow from record 0000"),
        (lambda message: setattr(message, "position", 0), "at position 0"),
    ],
)
def test_totals_that_cannot_be_leave_nothing_behind(pool_run, demo, tmp_path, tamper, said):
    reply = reply_of(pool_run)
    message = journal_pb2.Start.FromString(reply.start)
    tamper(message)
    reply.start = message.SerializeToString()
    with pytest.raises(ProtocolError, match=f"cannot be used, and nothing was written: .*{said}"):
        ask(Liar(reply), demo, tmp_path / "client")
    assert list((tmp_path / "client").iterdir()) == []


def test_totals_of_another_state_do_not_pass_and_are_given_up(pool_run, demo, tmp_path):
    reply = reply_of(pool_run)
    message = journal_pb2.Start.FromString(reply.start)
    message.totals[5] += 2**20
    reply.start = message.SerializeToString()
    with pytest.raises(ReplicaError, match="state digest is .* the totals that this copy of the journal began with"):
        ask(Liar(reply), demo, tmp_path / "client")
    assert not (tmp_path / "client" / "journal").exists()


@pytest.mark.parametrize(("compute_copy", "totals"), [("none", True), ("bf16", False)])
def test_a_client_with_a_compute_copy_wants_the_records(demo, tmp_path, compute_copy, totals):
    liar = Liar(pb.GenesisReply(payload=b"", record_hash=bytes(32)))
    with pytest.raises(ProtocolError, match="the genesis does not have the hash"):
        ask(liar, demo, tmp_path / "client", compute_copy)
    assert liar.asked == [pb.GenesisRequest(totals=totals, name="late")]


def test_a_directory_in_which_another_process_begins_is_refused(pool_run, demo, tmp_path):
    directory = tmp_path / "late"
    with (
        RunDirectory(directory).exclusive(),
        pytest.raises(ConfigError, match="another process is starting a run there"),
    ):
        ask(Liar(reply_of(pool_run)), demo, directory)
    assert not list(directory.iterdir())
