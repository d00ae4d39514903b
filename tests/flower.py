"""A real Flower deployment on loopback: a SuperLink and SuperNodes with TLS and node authentication."""

import os
import re
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fedzo_server.certificates import make_certificates
from network import WAIT_S, free_address, wait_until

ROOT = Path(__file__).parents[1]
CONNECTION = "loopback"


class Deployment:
    """Everything of it lies under one directory, and every process of it carries that directory in its environment.

    Args:
        path: of the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = free_address()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._home = path / "flwr-home"
        self._home.mkdir(parents=True)
        make_certificates(path / "tls", ["127.0.0.1"], clients=0, days=1)
        self._ca = path / "tls" / "ca.pem"
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n'
            f'[superlink.{CONNECTION}]\naddress = "{self.address}"\nroot-certificates = "{self._ca}"\n'
        )
        self.environment = os.environ | {
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "PATH": f"{_commands_of_flower(path / 'bin')}:{os.environ['PATH']}",
        }

    def start_superlink(self, *, durable: bool = False) -> None:
        """Start the SuperLink, or start it again.

        Args:
            durable: it keeps its state in a file, and apps run under a SuperExec beside it, so that it can be killed.
        """
        host, _, port = self.address.rpartition(":")
        tls = self.path / "tls"
        secret = self.path / "superexec.secret"
        kept = ("--database", self.path / "superlink.db", "--isolation", "process")
        self._start(
            "superlink",
            *("flower-superlink", "--host", host, "--port", port, "--enable-supernode-auth"),
            *("--ssl-ca-certfile", self._ca, "--ssl-certfile", tls / "server.pem", "--ssl-keyfile", tls / "server.key"),
            *((*kept, "--superexec-auth-secret-file", secret) if durable else ()),
        )
        if durable and "superexec" not in self._processes:
            secret.write_bytes(b"loopback" * 8)
            self._start(
                "superexec",
                *("flower-superexec", "--root-certificates", self._ca, "--runtime-api-address", self.address),
                *("--superexec-auth-secret-file", secret),
            )
        wait_until(lambda: self.flwr("supernode", "list", check=False).returncode == 0, "the SuperLink")

    def start_supernode(self, name: str, config: str) -> None:
        """Register a node under a name and start it."""
        key, public = self.path / f"{name}.key", self.path / f"{name}.pub"
        _write_key(key, public)
        self.flwr("supernode", "register", public, CONNECTION, "--name", name)
        self._start_node(name, config)

    def revive_supernode(self, name: str, config: str) -> None:
        """Start a node again where it has ended, as a service does: Flower turns it away until it noticed its death."""
        if self._processes[name].poll() is not None:
            self._start_node(name, config)

    def kill(self, name: str) -> None:
        """kill -9, and wait until it is gone."""
        self._processes[name].kill()
        self._processes[name].wait()

    def _start_node(self, name: str, config: str) -> None:
        host, _, port = free_address().rpartition(":")
        self._start(
            name,
            *("flower-supernode", "--superlink", self.address, "--root-certificates", self._ca),
            *("--auth-supernode-private-key", self.path / f"{name}.key"),
            *("--host", host, "--port", port, "--node-config", config),
        )

    def flwr(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of Flower's command line to its end."""
        command = ["flwr", *map(str, arguments)]
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command} ended with {done.returncode}:\n{done.stdout}{self.logs()}"
        return done

    def start_run(self, config: str) -> str:
        """Start a run and return its number."""
        said = self.flwr("run", ".", CONNECTION, "--run-config", config).stdout
        found = re.search(r"run (\d+)", said)
        assert found, said
        return found[1]

    def log_of(self, run_id: str) -> str:
        """What `flwr log` shows of a run so far."""
        return self.flwr("log", run_id, CONNECTION, "--show").stdout

    def logs(self) -> str:
        """The last that each process said."""
        return "".join(
            f"\n── {name}\n{(self.path / name).with_suffix('.log').read_text()[-4000:]}" for name in self._processes
        )

    def pids(self, command: str = "") -> list[int]:
        """Of its processes that run, also those that Flower started, with a word in their command line."""
        found = []
        for place in Path("/proc").iterdir():
            try:
                own = f"FLWR_HOME={self._home}".encode() in (place / "environ").read_bytes().split(b"\0")
                if own and command.encode() in (place / "cmdline").read_bytes():
                    found.append(int(place.name))
            except (OSError, ValueError):
                continue  # no process, another user's, or gone
        return found

    def _start(self, name: str, *command: object) -> None:
        with (self.path / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                list(map(str, command)), env=self.environment, cwd=self.path, stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGTERM)
        try:
            for process in self._processes.values():
                process.wait(30)
            wait_until(lambda: not self.pids(), "Flower's own processes end with those that started them")
        finally:
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)
            for process in self._processes.values():
                process.wait()


def _commands_of_flower(place: Path) -> Path:
    """A directory of Flower's commands as this interpreter runs them; Flower starts its own by name."""
    place.mkdir()
    for command in entry_points(group="console_scripts"):
        if command.dist is not None and command.dist.name == "flwr":
            script = place / command.name
            script.write_text(
                f"#!{sys.executable}\nimport sys\n"
                f"from {command.module} import {command.attr}\nsys.exit({command.attr}())\n"
            )
            script.chmod(0o755)
    return place


def _write_key(private: Path, public: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    formats = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *formats))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
