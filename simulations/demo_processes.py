"""`fedzo demo --processes`: a server and three clients as on four machines, one of them killed on the way.

Everything goes through the commands that a user has: `fedzo certs`, `fedzo server`, `fedzo client`, `fedzo status`,
over TLS on loopback, a token for each client. What is printed was read from what they print and from the journal.
"""

import json
import tempfile
import time
from collections.abc import Collection
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path

from rich.console import Console

from fedzo.errors import ProcessError, ReplicaError
from fedzo.journal import Commit, Evaluation, JournalContents, read_journal
from fedzo.results.rebuild import rebuild
from fedzo.run_directory import RunDirectory
from fedzo.tasks.dealing import client_names

from .farm_text import farm_lines
from .processes import Process, Processes

CLIENTS = client_names(3)
VICTIM = CLIENTS[1]
KILL_AT = 40
"""Position at which the victim is killed, or soon after."""
MISSED = 10
"""Records that it misses, at least, before it is started again."""
OPTIONS = {
    "clients": len(CLIENTS),
    "quorum": 2,
    "deadline": 5,
    "rounds": 160,
    "method": "distinct",
    "directions": 8,
    "batch-size": 16,
    "max-length": 48,
    "lr": 1e-2,
    "eval-every": 40,
    "attest-every": 20,
    "linger": 600,
}
READY_S = 120.0
RUN_S = 600.0


class Demo:
    """One run of the demo.

    Args:
        processes: where they are started.
        path: of everything that is written.
        console: where the story goes.
    """

    def __init__(self, processes: Processes, path: Path, console: Console) -> None:
        self._processes = processes
        self._path = path
        self._console = console
        self._model = str(files("fedzo_simulations") / "demo_model")
        self._address = ""

    def run(self) -> None:
        """Tell the whole story; raises ReplicaError where the replicas are not equal."""
        started_s = time.monotonic()
        self._make_certificates()
        server = self._start_server()
        clients = {name: self._start_client(name) for name in CLIENTS}
        self._show_stranger()
        self._wait_for_position(KILL_AT, (server, *clients.values()))
        clients[VICTIM].kill()
        killed_at = self._contents.position
        others = [client for name, client in clients.items() if name != VICTIM]
        self._wait_for_position(killed_at + MISSED, (server, *others))
        self._console.print(
            f"{VICTIM} was killed with kill -9 at position {killed_at}; the others went on to position "
            f"{self._contents.position}, then it was started again"
        )
        clients[VICTIM] = self._start_client(VICTIM)
        digests = {name: _final_digest(client) for name, client in clients.items()}
        self._show_return(server, clients[VICTIM])
        self._show_losses()
        self._show_digests(digests)
        self._console.print(f"all of it took {time.monotonic() - started_s:.0f} s")

    @property
    def _contents(self) -> JournalContents:
        return read_journal(self._path / "server" / "journal")

    def _make_certificates(self) -> None:
        asked = ("--out", self._path / "certs", "--host", "127.0.0.1", "--clients", len(CLIENTS))
        self._processes.start("certs", self._path / "certs.log", "certs", *asked).wait(READY_S)

    def _start_server(self) -> Process:
        certs, out = self._path / "certs", self._path / "server"
        options = [part for name, value in OPTIONS.items() for part in (f"--{name}", value)]
        proof = ("--tls-cert", certs / "server.pem", "--tls-key", certs / "server.key", "--tokens", certs / "tokens")
        where = ("--model", self._model, "--out", out, "--listen", "127.0.0.1:0")
        server = self._processes.start("server", self._path / "server.log", "server", *where, *proof, *options)
        self._address = server.wait_for(r"listening on (\S+)", READY_S)[1]
        self._console.print(f"server: process {server.pid}, {self._address}, holds no weights and no data")
        return server

    def _start_client(self, name: str) -> Process:
        certs, home = self._path / "certs", self._path / name
        home.mkdir(exist_ok=True)
        lines = list(farm_lines(900).values())[CLIENTS.index(name)]
        (home / "data.json").write_text(json.dumps(lines))
        proof = ("--ca", certs / "ca.pem", "--token", certs / "clients" / f"{name}.token")
        own = ("--model", self._model, "--data", home / "data.json", "--dir", home, "--threads", 1)
        client = self._processes.start(name, home / "log", "client", self._address, *own, *proof)
        self._console.print(f"{name}: process {client.pid}, {len(lines)} sentences of its own")
        return client

    def _show_stranger(self) -> None:
        asked = ("status", self._address, "--ca", self._path / "certs" / "ca.pem")
        stranger = self._processes.start("stranger", self._path / "stranger.log", *asked)
        refusal = stranger.wait_for("error: .*", READY_S)[0]
        self._console.print(f"a stranger without a token asks how the run stands, and is refused: {refusal}")

    def _wait_for_position(self, position: int, running: Collection[Process]) -> None:
        until_s = time.monotonic() + READY_S
        while self._contents.position < position:
            for process in running:
                process.check()
            if time.monotonic() > until_s:
                raise ProcessError(f"the run did not come to position {position} in {READY_S:g} seconds")
            time.sleep(0.1)

    def _show_return(self, server: Process, victim: Process) -> None:
        how = victim.wait_for(r"at position (\d+), from the (state file at position \d+|base)", READY_S)
        joined = server.wait_for(rf"(?s){VICTIM} left .*{VICTIM} joined at position (\d+) of (\d+)", READY_S)
        sent = int(joined[2]) - int(joined[1])
        without = sum(isinstance(r.body, Commit) and len(r.body.reports) < len(CLIENTS) for r in self._contents.records)
        self._console.print(
            f"{VICTIM} rebuilt position {how[1]} from its {how[2]} and its copy of the journal, and was sent "
            f"the {sent} records that it had missed; {without} of {OPTIONS['rounds']} rounds were committed without it"
        )

    def _show_losses(self) -> None:
        losses = [record.body.loss for record in self._contents.records if isinstance(record.body, Evaluation)]
        self._console.print(f"held-out loss of all clients: {losses[0]:.3f} before, {losses[-1]:.3f} after")

    def _show_digests(self, digests: dict[str, str]) -> None:
        replica, _, contents = rebuild(RunDirectory(self._path / "server"))
        stated = contents.records[-1].state_digest
        found = {
            "the server's journal states": "nothing" if stated is None else stated.hex(),
            **digests,
            f"a late joiner, from the base and {contents.valid_bytes:,} bytes of journal": replica.digest().hex(),
        }
        self._console.print("\nstate digests at the end:")
        for name, digest in found.items():
            self._console.print(f"  {digest}  {name}")
        if len(set(found.values())) > 1:
            raise ReplicaError("the state digests above are not equal; keep the run with --out and report it")
        self._console.print("equal to the bit\n")


def run_process_demo(out: Path | None) -> None:
    """Run the demo into a directory, a temporary one where none is given; no process is left."""
    console = Console(highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        path = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path.mkdir(parents=True, exist_ok=True)
        processes = stack.enter_context(Processes())
        console.print(f"a server and {len(CLIENTS)} clients, each a process of its own, with TLS and tokens\n")
        Demo(processes, path, console).run()
        if out is not None:
            console.print(f"everything is in {path}: fedzo journal show {path / 'server'}")


def _final_digest(client: Process) -> str:
    return client.wait_for(r"the run has ended at position .*, state digest ([0-9a-f]{64})", RUN_S)[1]
