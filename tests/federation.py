"""A federation as a user runs it: a server and clients as processes that a test kills and starts as it likes."""

import json
import re
import signal
from pathlib import Path

from network import Command, Nursery, free_address, wait_until
from proxy import Proxy

from fedzo.journal import Commit, End, JournalContents, read_journal
from fedzo.results.rebuild import rebuild
from fedzo.run_directory import RunDirectory

OPTIONS = {
    "method": "distinct",
    "rounds": 12,
    "batch-size": 4,
    "max-length": 32,
    "lr": 5e-3,
    "eval-every": 5,
    "attest-every": 4,
}


class Federation:
    """A server and its clients; each has a farm, in the order in which a simulation deals their data, then over again.

    Args:
        nursery: where they are started.
        demo: model and data.
        path: where everything is written.
        clients: that the run starts with.
        proxied: clients reach the server through a proxy each.
        options: of the run, but for `OPTIONS`.
    """

    def __init__(
        self, nursery: Nursery, demo, path: Path, clients: int = 4, *, proxied: bool = False, **options
    ) -> None:
        self._nursery = nursery
        self.model = demo.model
        self.path = path
        self.run = path / "run"
        self.address = free_address()
        self.proxies: dict[int, Proxy] = {}
        self._proxied = proxied
        self._seen: tuple[int, JournalContents] | None = None
        self.count = clients
        self.options = OPTIONS | {"clients": clients, "quorum": clients, "deadline": 30, "linger": 60} | options
        farms = json.loads(Path(demo.data).read_text())
        for number, key in enumerate(sorted(farms, key=lambda key: (-sum(map(len, farms[key])), key))):
            (path / f"data-{number}.json").write_text(json.dumps(farms[key]))
        self._farms = len(farms)
        self.server: Command
        self.clients: dict[int, Command] = {}

    def start(self) -> "Federation":
        """Start the server and all clients."""
        self.start_server()
        for number in range(self.count):
            self.start_client(number)
        return self

    def start_server(self, *more: object, fate: str = "") -> Command:
        """Start it, or start it again; `fates` says what a fate is."""
        run = ["--model", self.model, *(part for name, value in self.options.items() for part in (f"--{name}", value))]
        began = ["--resume", "--linger", self.options["linger"]] if (self.run / "journal").exists() else run
        here = ["--out", self.run, "--listen", self.address, "--insecure", *more]
        self.server = self._nursery.start("server", *began, *here, fate=fate)
        self.server.wait_for("listening on")
        return self.server

    def start_client(self, number: int, *more: object, model: str | None = None, fate: str = "") -> Command:
        """Start a client, or start it again in its directory."""
        own = ["--data", self.path / f"data-{number % self._farms}.json", "--dir", self.directory(number)]
        named = ["--name", f"client-{number}", "--model", model or self.model, "--threads", 1]
        address = self._proxy(number).address if self._proxied else self.address
        self.clients[number] = self._nursery.start("client", address, *own, *named, *more, fate=fate)
        return self.clients[number]

    def _proxy(self, number: int) -> Proxy:
        if number not in self.proxies:
            self.proxies[number] = Proxy(self.address)
        return self.proxies[number]

    def end(self) -> None:
        """kill -9 what still runs."""
        for process in (self.server, *self.clients.values()):
            process.signal(signal.SIGCONT)
            process.kill()
        for proxy in self.proxies.values():
            proxy.close()

    def directory(self, number: int) -> Path:
        return self.path / f"client-{number}"

    @property
    def position(self) -> int:
        return self._contents().position

    @property
    def round(self) -> int:
        """The last that ended."""
        return max((record.round for record in self._contents().records), default=0)

    def _contents(self) -> JournalContents:
        """The server's journal, which is read only when it has grown."""
        size = (self.run / "journal").stat().st_size
        if self._seen is None or size != self._seen[0]:
            self._seen = (size, read_journal(self.run / "journal"))
        return self._seen[1]

    def wait_for_position(self, position: int) -> None:
        wait_until(lambda: self.position >= position or not self.server.alive, f"position {position}")
        assert self.position >= position, "the server ended"

    def joins(self, number: int) -> list[int]:
        """Positions at which a client joined, as the server that is there now says."""
        return [int(p) for p in re.findall(rf"client-{number} joined at position (\d+)", self.server.said)]

    def wait_for_joins(self, number: int, count: int) -> None:
        """Return when a client has joined so often."""
        client = self.clients[number]
        wait_until(lambda: len(self.joins(number)) >= count or not client.alive, f"{count} joins of client {number}")
        assert len(self.joins(number)) == count

    def finish(self) -> str:
        """Wait for the clients, stop the server; the state digest on which all agree, replay included."""
        digests = {}
        for number, client in self.clients.items():
            assert client.wait() == 0, client.said
            digests[number] = re.search("the run has ended at position .*, state digest ([0-9a-f]{64})", client.said)[1]
        self.server.signal(signal.SIGTERM)
        assert self.server.wait() == 0, self.server.said
        replica, _, contents = rebuild(RunDirectory(self.run), self.model)
        assert isinstance(contents.records[-1].body, End)
        assert contents.records[-1].state_digest in (None, replica.digest())
        assert set(digests.values()) == {replica.digest().hex()}
        for number in self.clients:
            copy = read_journal(self.directory(number) / "journal")
            assert copy.records[copy.first :] == contents.records[copy.first :]
            assert copy.hashes[copy.first :] == contents.hashes[copy.first :]
            if copy.start is None:
                assert (self.directory(number) / "journal").read_bytes() == (self.run / "journal").read_bytes()
        return replica.digest().hex()

    def committed(self) -> list[int]:
        """Rounds of the commits."""
        records = read_journal(self.run / "journal").records
        return [record.round for record in records if isinstance(record.body, Commit)]
