"""Servers and clients for the network tests: real processes to kill, and a client made by hand that says anything."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import grpc
from fedzo_client.options import ConnectionOptions
from fedzo_client.status import fetch_status, status_lines
from fedzo_server.options import ServerOptions

from fedzo.config import write_toml
from fedzo.coordinator import Plan, Purpose, Report
from fedzo.journal import Genesis, Journal, JournalContents, read_journal
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1.rounds_pb2_grpc import RoundsStub
from fedzo.wire.handshake import Join, encode_join
from fedzo.wire.rounds import decode_plan, encode_report
from fedzo.wire.steps import decode_steps

WAIT_S = 400.0
"""Seconds after which what a test waits for does not come; no measure of how long it takes."""
CALL_S = 60.0
STREAM_S = 600.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return when a condition holds; fail where it does not in time."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"waited {WAIT_S:g} s in vain: {what}"
        time.sleep(0.01)


def free_address() -> str:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


# ── processes ───────────────────────────────────────────────────────────────────────────────────────


class Command:
    """One `fedzo` command in a process of its own; what it prints is in its log.

    Args:
        pid: of the process.
        log: the file.
        poll: asks for the exit code of a process, as `subprocess.Popen.poll`; the process is reaped by that alone, so
            that its number cannot be another one's before.
    """

    def __init__(self, pid: int, log: Path, poll: Callable[[int], int | None]) -> None:
        self.pid = pid
        self.log = log
        self._poll = poll
        self._code: int | None = None

    @property
    def said(self) -> str:
        """All that it printed so far."""
        return self.log.read_text()

    @property
    def alive(self) -> bool:
        if self._code is None:
            self._code = self._poll(self.pid)
        return self._code is None

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.said or not self.alive, text)
        assert text in self.said, f"it ended without saying {text!r}:\n{self.said}"

    def wait(self) -> int | None:
        """The exit code; that of a signal is negative."""
        wait_until(lambda: not self.alive, f"the end of the process; it said:\n{self.said}")
        return self._code

    def signal(self, number: int) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait()


class Nursery:
    """Starts `fedzo` commands in a moment: forks of one process that has the imports done and nothing running."""

    _SCRIPT = """
import json, os, sys, traceback
import fates, fedzo.cli, fedzo_client.runner, fedzo_server.runner, fedzo.noise.numba_backend
def child(arguments, log, fate):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for target in (1, 2):
        os.dup2(descriptor, target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv, code = ["fedzo", *arguments], 0
    if fate:
        fates.install(fate)
    try:
        fedzo.cli.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, int):
        ended, status = os.waitpid(asked, os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if ended else None
    elif (answer := os.fork()) == 0:
        child(*asked)
    print(json.dumps(answer), flush=True)
"""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._commands: list[Command] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "COLUMNS": "200",
                "PYTHONPATH": str(Path(__file__).parent),
            },
        )
        assert self._line() == "ready"

    def start(self, *arguments: object, fate: str = "") -> Command:
        """Start a command; it is ended with the nursery at the latest, or by its fate (see `fates`)."""
        log = self._logs / f"{len(self._commands)}-{arguments[0]}.log"
        log.touch()
        pid = self._ask([[str(part) for part in arguments], str(log), fate])
        assert pid is not None
        self._commands.append(Command(pid, log, self._ask))
        return self._commands[-1]

    @property
    def count(self) -> int:
        """Commands started so far."""
        return len(self._commands)

    def told(self, since: int) -> str:
        """What the commands from one on have printed."""
        return "\n".join(f"── {command.log.stem}\n{command.said}" for command in self._commands[since:])

    def end_all(self) -> None:
        """kill -9 what still runs."""
        for command in self._commands:
            command.signal(signal.SIGCONT)
            command.kill()

    def _ask(self, what: object) -> int | None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer: int | None = json.loads(self._line())
        return answer

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.end_all()
        self._process.kill()
        self._process.communicate()


class Hosted:
    """A server without weights, over a genesis made by hand, and its run directory.

    Args:
        nursery: where it is started.
        path: of the run.
        genesis: of the run.
        clients: that it waits for at the start.
    """

    def __init__(self, nursery: Nursery, path: Path, genesis: Genesis, clients: int, linger_s: float = 0.0) -> None:
        self._nursery = nursery
        self._linger_s = linger_s
        self.gather_s = 5.0
        self.path = path
        self.address = free_address()
        path.mkdir()
        write_toml(path / "config.toml", ServerOptions(model="by-hand", out=str(path), clients=clients, insecure=True))
        Journal.create(path / "journal", genesis).close()
        self.process = self.start()

    def start(self) -> Command:
        """Start it, or start it again, on the same address; returns when it listens."""
        options = [
            "--out",
            self.path,
            "--listen",
            self.address,
            "--insecure",
            "--linger",
            self._linger_s,
            "--gather",
            self.gather_s,
        ]
        self.process = self._nursery.start("server", "--resume", *options)
        self.process.wait_for("listening on")
        return self.process

    @property
    def contents(self) -> JournalContents:
        return read_journal(self.path / "journal")

    @property
    def journal_bytes(self) -> bytes:
        return (self.path / "journal").read_bytes()

    def status(self) -> pb.StatusReply:
        with grpc.insecure_channel(self.address) as channel:
            return RoundsStub(channel).Status(pb.StatusRequest(), timeout=CALL_S)


# ── clients by hand ─────────────────────────────────────────────────────────────────────────────────


class Stream:
    """The client's side of a session, byte by byte."""

    def __init__(self, address: str) -> None:
        self._out: queue.Queue[bytes | None] = queue.Queue()
        self._in: queue.Queue[pb.ServerMessage | grpc.RpcError | None] = queue.Queue()
        self._paused = threading.Event()
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._call = self._channel.stream_stream(
            "/fedzo.v1.Rounds/Session",
            request_serializer=None,
            response_deserializer=pb.ServerMessage.FromString,
        )(iter(self._out.get, None), timeout=STREAM_S, wait_for_ready=True)
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, message: pb.ClientMessage | bytes) -> None:
        self._out.put(message if isinstance(message, bytes) else message.SerializeToString())

    def pause(self) -> None:
        """Read nothing any more."""
        self._paused.set()

    def finish(self) -> None:
        """Say that nothing more will come."""
        self._out.put(None)

    def read(self) -> pb.ServerMessage:
        """The next message."""
        item = self._in.get(timeout=CALL_S)
        assert isinstance(item, pb.ServerMessage), item
        return item

    def error(self) -> tuple[grpc.StatusCode, str]:
        """How the server ended it, messages before that left out."""
        while isinstance(item := self._in.get(timeout=CALL_S), pb.ServerMessage):
            pass
        return (grpc.StatusCode.OK, "") if item is None else (item.code(), item.details())

    def drop(self) -> None:
        """Be gone without a word."""
        self._out.put(None)
        self._call.cancel()
        self._channel.close()

    def _listen(self) -> None:
        try:
            for message in self._call:
                self._in.put(message)
                if self._paused.is_set():
                    return
            self._in.put(None)
        except grpc.RpcError as error:
            self._in.put(error)


class HandClient:
    """A client without a model: it follows the journal and reports what it is told to.

    Args:
        hosted: the server.
        name: of the client.
        at: the client whose place in the journal it has; else at position 0.
        changes: to its join.
    """

    def __init__(self, hosted: Hosted, name: str, at: "HandClient | None" = None, **changes) -> None:
        contents = hosted.contents
        self.genesis = contents.genesis
        self.hashes = list(at.hashes) if at is not None else contents.hashes[:1]
        self.name = name
        self.answers: list[pb.Answer] = []
        self.plans: list[Plan] = []
        self.index = 0
        """Its own, once the test knows it."""
        self.stream = Stream(hosted.address)
        join = {
            "name": name,
            "genesis_hash": self.hashes[0],
            "base_digest": self.genesis.base_digest,
            "manifest_digest": self.genesis.manifest.digest(),
            "tokenizer_digest": self.genesis.task.tokenizer_digest,
            "task": self.genesis.task.name,
            "position": len(self.hashes) - 1,
            "record_hash": self.hashes[-1],
        }
        self.stream.send(encode_join(Join(**(join | changes))))

    def plan(self) -> Plan:
        """Read until a plan comes that was not taken yet."""
        while not self.plans:
            self.read()
        return self.plans.pop(0)

    def answer(self) -> pb.Answer:
        """Read until an answer comes that was not taken yet."""
        while not self.answers:
            self.read()
        return self.answers.pop(0)

    def read(self) -> pb.ServerMessage:
        """The next message, its records followed, its answers and its plan kept."""
        message = self.stream.read()
        self.answers += message.answers
        self.hashes += [record_hash for _, record_hash in decode_steps(self.genesis, message.steps)]
        if message.HasField("plan"):
            assert message.plan.position == len(self.hashes) - 1
            self.plans.append(decode_plan(message.plan, self.index, self.hashes[-1]))
        return message

    def report(self, plan: Plan, **changes) -> pb.ClientMessage:
        """A good report on a plan, but for the changes; not sent."""
        training = plan.purpose is Purpose.TRAIN
        count = self.genesis.rules.directions * self.genesis.rules.local_steps if training else 0
        good = {
            "purpose": plan.purpose,
            "round": plan.round,
            "client": 0,
            "record_hash": plan.record_hash,
            "examples": 4,
            "loss": 2.5,
            "projected_gradients": (0.25,) * count,
            "state_digest": bytes(32) if plan.attest else None,
            "maxima": (1,) * len(self.genesis.manifest) if plan.attest else None,
        }
        return encode_report(Report(**(good | changes)))

    def take_part(self, plan: Plan | None = None, **changes) -> pb.Answer:
        """Report on the next plan; the answer."""
        self.stream.send(self.report(plan or self.plan(), **changes))
        return self.answer()


@contextmanager
def nursery_in(logs: Path) -> Iterator[Nursery]:
    """A nursery whose processes are ended with it."""
    with Nursery(logs) as nursery:
        yield nursery


def both(hosted: Hosted) -> list[HandClient]:
    """Two clients that have joined a run that starts with two."""
    clients = [HandClient(hosted, "anna"), HandClient(hosted, "bertl")]
    for index, client in enumerate(clients):
        client.index = index
    return clients


def status_text(hosted: Hosted) -> str:
    return "\n".join(status_lines(fetch_status(ConnectionOptions(address=hosted.address))))
