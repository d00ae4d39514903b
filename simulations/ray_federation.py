"""`--engine flower`: Flower's simulation runtime over the user's model and data, in processes of Ray.

The ServerApp runs in this process, on the run's own journal; the clients' turns run in whichever process of Ray is
free, each with one replica (`fedzo_client.virtual`). Nothing of Ray's or Flower's is left when it is over.
"""

import asyncio
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from types import FrameType
from typing import Any

import psutil  # comes with Ray
import ray
from fedzo_client.app import virtual_app
from fedzo_client.virtual import VirtualOptions
from fedzo_server.hosting import hosting
from fedzo_server.turns import Turns
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedzo.errors import ProcessError
from fedzo.journal import End, Journal, Record
from fedzo.run_directory import RunDirectory
from fedzo.state.statefile import save_state

from .options import SimulateOptions
from .setup import Setting
from .simulator import Progress, Watcher
from .tally import count_record

RUN = "simulation"
"""Name of the run, as far as clients have a use for one."""
GATHER_S = 86_400.0
"""A resumed run waits for all its clients."""
PATIENCE_S = 600.0
"""Seconds until some client has joined, or without any, after which the run is given up."""
END_S = 60.0
"""Seconds that the clients have to take the run's end, and the ServerApp to stop."""
OBJECT_STORE_BYTES = 100_000_000
"""Shared memory for messages on their way."""
RESOURCES: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0}
"""Of one process."""
LOOK_S = 1.0
"""Seconds between looks at which processes there are."""
STOP_S = 10.0
"""Seconds that Ray's processes have to end when they are told to; then they are killed."""
SOCKETS = "/tmp"
"""Ray's sockets lie under its directory, and their paths may not be long."""


class RayFederation:
    """One run of Flower's simulation; takes what `Simulator` takes, and leaves the same run directory."""

    def __init__(
        self,
        options: SimulateOptions,
        setting: Setting,
        journal: Journal,
        run: RunDirectory,
        progress: Progress,
        watch: Watcher,
    ) -> None:
        self._options = options
        self._setting = setting
        self._journal = journal
        self._run = run
        self._progress = progress
        self._watch = watch
        self._counted_bytes = journal.contents.valid_bytes
        self._stop: Callable[[], object] | None = None
        self._interrupted = False
        self._started: set[psutil.Process] = set()
        self._idle = threading.Event()
        self._idle.set()

    def run(self) -> None:
        """Run until the journal has its end, then bring the replica there, checking every digest.

        Raises:
            ProcessError: a client failed; the run can be resumed.
            ReplicaError: the replica is not what the journal states.
        """
        if not any(isinstance(record.body, End) for record in self._journal.contents.records):
            cores = os.cpu_count() or 1
            processes = min(cores, self._options.cohort or self._options.clients)
            with _quiet(), _ray(processes, self._started), _answering(self._interrupt):
                self._simulate(self._options.threads or cores // processes)
        contents, replica = self._journal.contents, self._setting.replica
        replica.resume(contents.records, contents.hashes)
        save_state(self._run.state, replica)

    def _simulate(self, threads: int) -> None:
        """Flower's runtime, from its start to its end, over the processes of Ray that are there.

        Args:
            threads: of each process.
        """
        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            self._idle.clear()
            try:
                asyncio.run(self._host(grid))
            finally:
                self._idle.set()

        options = self._options
        shared = {field.name: getattr(options, field.name) for field in fields(VirtualOptions)}
        client_app = virtual_app(VirtualOptions(**shared | {"threads": threads}))
        try:
            run_simulation(server_app, client_app, options.clients, backend_config={"client_resources": RESOURCES})
        finally:
            if self._stop is not None:
                self._stop()
            self._idle.wait(END_S)
        if self._interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Let what is under way come to its end: Flower's threads would wait for ever where Ray is gone under them."""
        if self._stop is None or self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        self._stop()

    async def _host(self, grid: Grid) -> None:
        """Host the run for the virtual nodes of a grid."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        started = hosting(
            self._journal, start_with=self._options.clients, gather_s=GATHER_S, watch=self._take, say=_say_nothing
        )
        try:
            async with started as (host, task):
                noting = asyncio.create_task(self._note_processes())
                turns = Turns(grid, host, RUN, patience_s=PATIENCE_S, say=_say_nothing, lost=_fail)
                try:
                    await turns.until_over(task, stop, END_S)
                finally:
                    noting.cancel()
        finally:
            self._stop = None

    async def _note_processes(self) -> None:
        """Those of the clients are no children of this one any more when Flower has shut Ray down."""
        while True:
            self._started |= _descendants()
            await asyncio.sleep(LOOK_S)

    def _take(self, position: int, record: Record) -> None:
        """A record is durable."""
        valid_bytes = self._journal.contents.valid_bytes
        count_record(self._progress, self._setting, record, valid_bytes - self._counted_bytes)
        self._counted_bytes = valid_bytes
        self._run.append_metrics(position, record, **self._progress.measured())
        self._watch(position, record, self._progress)


def _fail(name: str, reason: str) -> None:
    """A run without one of its clients is not the run that was asked for."""
    raise ProcessError(f"client {name} failed: {reason}; go on with --resume")


def _say_nothing(text: str) -> None:
    """Who came and left is of no interest where all clients are virtual."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower's log says nothing; what fails is raised here."""
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _ray(processes: int, started: set[psutil.Process]) -> Iterator[None]:
    """Ray with that many processes for clients and no dashboard; nothing that it starts or writes stays.

    Args:
        processes: for clients.
        started: processes of it that were seen; they are waited for at the end, and killed where that takes too long.
    """
    with tempfile.TemporaryDirectory(prefix="fedzo-ray-", dir=SOCKETS, ignore_cleanup_errors=True) as place:
        try:
            ray.init(
                num_cpus=processes,
                num_gpus=0,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                _temp_dir=place,
            )
            yield
        finally:
            started |= _descendants()
            ray.shutdown()
            for process in psutil.wait_procs(started, timeout=STOP_S)[1]:
                process.kill()


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@contextmanager
def _answering(interrupt: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Take Ctrl-C and SIGTERM; Ray's own handler would abort."""
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
