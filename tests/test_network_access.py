"""Who may come in: certificates and tokens as `fedzo certs` makes them, and what is refused without them."""

import re
import stat
from pathlib import Path

import grpc
import pytest
from fedzo_client.connection import Backoff
from fedzo_server.options import ServerOptions
from helpers import make_genesis
from network import CALL_S, Nursery, free_address

from fedzo.config import write_toml
from fedzo.journal import Journal
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1.rounds_pb2_grpc import RoundsStub
from fedzo.wire.handshake import Join, encode_join
from fedzo.wire.loopback import is_loopback

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    with Nursery(tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture(scope="module")
def certificates(nursery, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("certificates") / "made"
    made = nursery.start("certs", "--out", out, "--host", "localhost", "--host", "127.0.0.1", "--clients", 3)
    assert made.wait() == 0, made.said
    return out


@pytest.fixture(scope="module")
def other_certificates(nursery, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("certificates") / "others"
    assert nursery.start("certs", "--out", out, "--host", "127.0.0.1", "--clients", 1).wait() == 0
    return out


def serve(nursery: Nursery, path: Path, certificates: Path, **access: str) -> str:
    """The address of a server with TLS."""
    path.mkdir()
    tls = {"tls_cert": str(certificates / "server.pem"), "tls_key": str(certificates / "server.key")}
    write_toml(path / "config.toml", ServerOptions(model="by-hand", out=str(path), clients=2, **tls, **access))
    Journal.create(path / "journal", make_genesis()).close()
    server = nursery.start("server", "--resume", "--out", path, "--listen", "127.0.0.1:0")
    server.wait_for("listening on")
    return re.search(r"listening on (\S+)", server.said)[1]


@pytest.fixture(scope="module")
def with_tokens(nursery, certificates, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("with-tokens") / "run"
    return serve(nursery, path, certificates, tokens=str(certificates / "tokens"))


@pytest.fixture(scope="module")
def with_client_certificates(nursery, certificates, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("with-certificates") / "run"
    return serve(nursery, path, certificates, tls_ca=str(certificates / "ca.pem"))


def join_as(name: str, channel: grpc.Channel, token: str | None = None) -> pb.ServerMessage:
    """The first answer to a join."""
    genesis = make_genesis()
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    stub = RoundsStub(channel)
    reply = stub.FetchGenesis(pb.GenesisRequest(), timeout=CALL_S, metadata=metadata)
    join = Join(
        name=name,
        genesis_hash=reply.record_hash,
        base_digest=genesis.base_digest,
        manifest_digest=genesis.manifest.digest(),
        tokenizer_digest=genesis.task.tokenizer_digest,
        task="lm",
        position=0,
        record_hash=reply.record_hash,
    )
    return next(stub.Session(iter([encode_join(join)]), timeout=CALL_S, metadata=metadata))


def secure(address: str, certificates: Path, client: str | None = None) -> grpc.Channel:
    own = [(certificates / "clients" / f"{client}.{kind}").read_bytes() for kind in ("key", "pem")] if client else []
    return grpc.secure_channel(address, grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes(), *own))


def token_of(certificates: Path, client: str) -> str:
    return (certificates / "clients" / f"{client}.token").read_text().strip()


def test_a_client_comes_in_with_its_token(with_tokens, certificates):
    with secure(with_tokens, certificates) as channel:
        assert join_as("client-0", channel, token_of(certificates, "client-0")).HasField("welcome")


@pytest.mark.parametrize(
    ("name", "token_name", "code", "said"),
    [
        ("client-0", None, Code.UNAUTHENTICATED, "given no token; give the client its own with --token"),
        ("client-0", "made up", Code.UNAUTHENTICATED, "given a token that it does not know"),
        (
            "client-0",
            "client-1",
            Code.FAILED_PRECONDITION,
            "'client-0' came with the token or certificate of 'client-1'",
        ),
    ],
)
def test_a_client_without_its_own_token_is_refused(with_tokens, certificates, name, token_name, code, said):
    known = token_name is not None and token_name.startswith("client")
    with secure(with_tokens, certificates) as channel, pytest.raises(grpc.RpcError) as error:
        join_as(name, channel, token_of(certificates, token_name) if known else token_name)
    assert error.value.code() is code
    assert said in error.value.details()


@pytest.mark.parametrize("call", ["FetchGenesis", "Status", "Follow"])
def test_nothing_of_the_run_is_told_without_a_token(with_tokens, certificates, call):
    requests = {"FetchGenesis": pb.GenesisRequest(), "Status": pb.StatusRequest(), "Follow": pb.FollowRequest()}
    with secure(with_tokens, certificates) as channel, pytest.raises(grpc.RpcError) as error:
        list(getattr(RoundsStub(channel), call)(requests[call], timeout=CALL_S))
    assert error.value.code() is Code.UNAUTHENTICATED


def test_a_client_comes_in_with_its_certificate_and_under_its_own_name(with_client_certificates, certificates):
    with secure(with_client_certificates, certificates, "client-1") as channel:
        assert join_as("client-1", channel).HasField("welcome")
        with pytest.raises(grpc.RpcError) as error:
            join_as("client-2", channel)
    assert "'client-2' came with the token or certificate of 'client-1'" in error.value.details()


def test_without_a_certificate_of_the_authority_no_connection_is_made(
    with_client_certificates, certificates, other_certificates
):
    channels = [secure(with_client_certificates, certificates), secure(with_client_certificates, other_certificates)]
    for channel in channels:
        with channel, pytest.raises(grpc.RpcError) as error:
            join_as("client-0", channel)
        assert error.value.code() is Code.UNAVAILABLE


def test_a_server_with_another_authority_is_not_trusted(with_tokens, nursery, other_certificates):
    status = nursery.start(
        *("status", with_tokens, "--ca", other_certificates / "ca.pem"),
        *("--token", other_certificates / "clients" / "client-0.token"),
    )
    assert status.wait() == 1
    assert "no server answers there" in status.said


def test_a_run_over_tls_with_the_commands(nursery, demo, certificates, tmp_path):
    address = free_address()
    server = nursery.start(
        *("server", "--model", demo.model, "--out", tmp_path / "run", "--listen", address, "--clients", 2),
        *("--rounds", 3, "--max-length", 32, "--batch-size", 4, "--linger", 0, "--eval-every", 0),
        *("--tls-cert", certificates / "server.pem", "--tls-key", certificates / "server.key"),
        *("--tokens", certificates / "tokens"),
    )
    common = [address, "--ca", certificates / "ca.pem"]
    clients = []
    for number in range(2):
        own = ["--dir", tmp_path / f"client-{number}", "--token", certificates / "clients" / f"client-{number}.token"]
        clients.append(nursery.start("client", *common, *own, "--model", demo.model, "--data", demo.data))
    for process in (*clients, server):
        assert process.wait() == 0, process.said
    assert "end of the run, state digest" in server.said


def test_status_as_a_person_reads_it(with_tokens, nursery, certificates):
    own = ["--ca", certificates / "ca.pem", "--token", certificates / "clients" / "client-2.token"]
    status = nursery.start("status", with_tokens, *own)
    assert status.wait() == 0
    assert "waiting for 2 more clients" in status.said
    assert "round 0 of 4, position 0" in status.said


def test_secrets_are_for_their_owner_alone_and_the_token_file_holds_none(certificates, nursery):
    for path in certificates.rglob("*"):
        if path.suffix in (".key", ".token"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert token_of(certificates, "client-0") not in (certificates / "tokens").read_text()
    again = nursery.start("certs", "--out", certificates, "--host", "x")
    assert again.wait() == 1
    assert "is not empty; give a new directory" in again.said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--listen", "0.0.0.0:0"), "options --tls-cert and --tls-key must be given (`fedzo certs` makes both)"),
        (("--listen", "127.0.0.1:0"), "on one machine alone, --insecure does without"),
        (("--listen", "0.0.0.0:0", "--insecure"), "0.0.0.0:0 is not loopback; anyone could join. Give TLS and tokens"),
        (("--tls-cert", "a", "--tls-key", "b"), "option --tokens or --tls-ca must be given"),
        (("--insecure", "--tokens", "t"), "option insecure is given together with TLS or tokens"),
        (("--listen", "here", "--insecure"), "option listen is 'here'; expected HOST:PORT"),
        (("--insecure", "--rounds", -1), "option rounds is -1; expected 0 to"),
        (("--tls-cert", "a", "--tls-key", "b", "--tokens", "c"), "c: cannot be read: No such file or directory"),
    ],
)
def test_a_server_that_anyone_could_join_is_not_started(nursery, demo, tmp_path, options, said):
    server = nursery.start("server", "--model", demo.model, "--out", tmp_path / "run", *options)
    assert server.wait() == 1
    assert said in " ".join(server.said.split())
    assert not (tmp_path / "run").exists(), "nothing was written"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_what_stays_on_this_machine(address, expected):
    assert is_loopback(address) is expected


def test_delays_grow_differ_and_begin_again():
    backoffs = [Backoff() for _ in range(20)]
    for backoff in backoffs:
        delays = [backoff.next_s() for _ in range(12)]
        assert 0.05 <= delays[0] <= 0.1
        assert all(2.5 <= delay <= 5 for delay in delays[-3:])
        backoff.reset()
    assert len({backoff.next_s() for backoff in backoffs}) > 10
    assert all(backoff.next_s() <= 0.2 for backoff in backoffs)
