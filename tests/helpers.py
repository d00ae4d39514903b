"""What several test files share: a small genesis, numbered records, and processes to kill -9. Quick to import."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import pytest
from blake3 import blake3

from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.journal import ClientReport, Commit, Entry, Genesis, Record, Rules, Task, Void
from fedzo.noise import BACKENDS, Distribution, NoiseBackend, get_backend
from fedzo.scopes import ALL, Scope
from fedzo.tiers.disk import DiskStore
from fedzo.tiers.page_reader import PageReader

TESTS = Path(__file__).parent
MANIFEST = Manifest((TensorSpec("a.weight", (2, 3), 29, 2**29), TensorSpec("b.bias", (4,), 28, 2**28)))
BACKENDS_HERE = tuple(name for name in BACKENDS if name != "triton" or find_spec("triton"))
"""Triton has no packages for some platforms."""
PROCESS_TIMEOUT_S = 300.0


class OnGpu:
    """A backend that needs its tensors on the GPU, for tests whose tensors are on the CPU."""

    def __init__(self, backend: NoiseBackend) -> None:
        self.name = backend.name
        self._backend = backend

    def commit(self, state, segments, steps, threads) -> None:
        there = state.cuda()
        self._backend.commit(there, segments, steps, threads)
        state.copy_(there)

    def materialise(self, state, segments, steps, out, threads) -> None:
        there = out.cuda()
        self._backend.materialise(state.cuda(), segments, steps, there, threads)
        out.copy_(there)


def backend_for_cpu(name: str) -> NoiseBackend:
    """The backend of that name, for tensors on the CPU: conftest.py lets triton interpret where there is no GPU."""
    backend = get_backend(name)
    return backend if name != "triton" or os.environ.get("TRITON_INTERPRET") else OnGpu(backend)


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many integers each read of a state on disk asks for, from now on."""
    counts: list[int] = []
    read, pick = PageReader.read, DiskStore._read_at

    def counted(pages, start, size, buffer):
        counts.append(size)
        read(pages, start, size, buffer)

    def picked(store, start, integers):
        counts.append(integers.numel())
        pick(store, start, integers)

    monkeypatch.setattr(PageReader, "read", counted)
    monkeypatch.setattr(DiskStore, "_read_at", picked)
    return counts


def make_rules(**changes) -> Rules:
    """Rules of a short run without evaluation, attestation or divergence guard, but for the changes."""
    rules = {
        "method": "distinct",
        "rounds": 4,
        "cohort": 2,
        "quorum": 1,
        "deadline_s": 10.0,
        "directions": 1,
        "local_steps": 1,
        "batch_size": 8,
        "epsilon": 2**30,
        "learning_rate": 0.001,
        "schedule": "constant",
        "evaluate_every": 0,
        "attest_every": 0,
        "guard_factor": 0.0,
    }
    return Rules(**(rules | changes))


def make_genesis(
    *,
    manifest: Manifest = MANIFEST,
    distribution: Distribution = Distribution.RADEMACHER,
    run_seed: int = 0,
    scope: Scope = ALL,
    **rules,
) -> Genesis:
    """A genesis of a run with `make_rules(**rules)`."""
    return Genesis(
        base_digest=bytes(range(32)),
        manifest=manifest,
        distribution=distribution,
        run_seed=run_seed,
        scope=scope,
        task=Task(name="lm", tokenizer_digest=bytes(range(32, 64)), max_length=128),
        rules=make_rules(**rules),
    )


def numbered_record(number: int) -> Record:
    """A record that is a function of its position; every eighth is 2 MiB, so that a kill may fall into its write."""
    if number % 8 == 0:
        return Record(number, Void(chr(ord("a") + number % 26) * 2**21, (number,), diverged=False))
    entries = (Entry(number * 2654435761 % 2**64, -number), Entry(number, number**5))
    return Record(number, Commit(entries, 1 / number, (ClientReport(number % 7, number, number / 3, (number / 4,)),)))


def big_replica(position: int):
    """A replica of one million integers that are a function of its position."""
    import torch

    from fedzo.state.replica import Replica

    manifest = Manifest((TensorSpec("w", (1000, 1000), 29, 2**30),))
    state = (torch.arange(manifest.elements, dtype=torch.int32) * 3 + position * 7) % 2**30
    replica = Replica(manifest, state, Distribution.RADEMACHER, backend=get_backend("reference"))
    replica.position, replica.record_hash = position, big_replica_hash(position)
    return replica


def big_replica_hash(position: int) -> bytes:
    """The record hash of `big_replica`."""
    return blake3(str(position).encode()).digest()


def run_python(script: str, *arguments: str | Path) -> str:
    """What a script prints, run to its end in a process of its own; its errors fail the test."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PROCESS_TIMEOUT_S,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Victims:
    """Processes that do some work until they are killed, forked from one process that has the imports done.

    Args:
        script: defines `work(argument, say)`; `say(text)` has reached this process when it returns.
    """

    _FORKS = """
import os, sys, traceback
def say(text):
    os.write(1, f"{text}\\n".encode())
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        say(f"pid {os.getpid()}")
        try:
            work(line.rstrip("\\n"), say)
        finally:
            os._exit(1)
    say(f"ended {os.waitpid(child, 0)[1]}")
"""

    def __init__(self, script: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script + self._FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(),
        )

    def run_and_kill(self, argument: str | Path, after_s: float) -> list[str]:
        """Start one, kill -9 it some time after its first word, and return all that it had said."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{argument}\n")
        self._process.stdin.flush()
        pid = int(self._line().removeprefix("pid "))
        said = [self._line()]
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
        while not (line := self._line()).startswith("ended "):
            said.append(line)
        assert os.waitstatus_to_exitcode(int(line.removeprefix("ended "))) == -signal.SIGKILL
        return said

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process ended by itself"
        return line.rstrip("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.communicate()


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(TESTS)}
