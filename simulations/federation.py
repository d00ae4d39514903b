"""`--engine processes`: a server and every client in processes of their own, and this one follows their journal.

    RUN/journal, metrics.jsonl, …   as of any simulation: what the follower took over from the server
    RUN/server/                     the server's own run directory, and its log
    RUN/clients/client-K/           a client's rows, journal, replica and log

Everything a client or the server needs is in its directory, so they are started alike for a new run and a resumed one.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import grpc

from fedzo.base.checkpoint import load_tokenizer
from fedzo.config import option_name, write_toml
from fedzo.coordinator.calibration import most_directions
from fedzo.errors import ConfigError, DataError, ProcessError
from fedzo.journal import End, Journal, read_journal
from fedzo.options.compute import ComputeOptions
from fedzo.options.run import RunOptions
from fedzo.run_directory import RunDirectory
from fedzo.state.statefile import save_state
from fedzo.tasks.dealing import client_names
from fedzo.tasks.rows import Row, read_rows
from fedzo.v1 import rounds_pb2 as pb
from fedzo.v1.rounds_pb2_grpc import RoundsStub
from fedzo.wire.steps import decode_steps

from .options import SimulateOptions
from .processes import Process, Processes
from .setup import Setting, deal, make_task
from .simulator import Progress, Watcher
from .tally import count_record

READY_S = 300.0
"""Seconds in which the server listens, and the run's end reaches all clients."""
QUIET_S = 900.0
"""Seconds without a record, beside the deadline of a round, after which the run is given up."""
LOOK_S = 1.0
"""Seconds between looks at whether all processes are still there."""
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", 1 << 28),)
"""A roll-back of a long run is one large record."""
LINGER_S = 86_400
"""The server stays until it is told to stop, and a resumed one waits for all its clients."""


class Federation:
    """One run of processes; takes what `Simulator` takes, and leaves the same run directory."""

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
        self._names = client_names(options.clients)

    def run(self) -> None:
        """Run until the journal has its end, then bring the replica there, checking every digest.

        Raises:
            ProcessError: a process failed; the others were ended, and the run can be resumed.
            ReplicaError: the replica is not what the journal states.
        """
        if not self._ended:
            write_client_rows(self._options, [self._home(name) for name in self._names])
            with Processes() as processes:
                address = self._start_server(processes)
                clients = [self._start_client(processes, address, name) for name in self._names]
                self._follow(address, processes)
                for client in clients:
                    client.wait(READY_S)
        contents, replica = self._journal.contents, self._setting.replica
        replica.resume(contents.records, contents.hashes)
        save_state(self._run.state, replica)

    @property
    def _ended(self) -> bool:
        return any(isinstance(record.body, End) for record in self._journal.contents.records)

    def _home(self, name: str) -> Path:
        return self._run.path / "clients" / name

    def _start_server(self, processes: Processes) -> str:
        """Start the server on the run's journal; its address."""
        directory = RunDirectory(self._run.path / "server")
        directory.path.mkdir(exist_ok=True)
        given = {field.name: getattr(self._options, field.name) for field in fields(RunOptions)}
        write_toml(directory.config, RunOptions(**given | {"out": str(directory.path)}))
        hand_over(self._run.journal, directory.journal)
        here = ("--listen", "127.0.0.1:0", "--insecure", "--gather", LINGER_S, "--linger", LINGER_S)
        log = directory.path / "log"
        server = processes.start("server", log, "server", "--resume", "--out", directory.path, *here)
        return server.wait_for(r"listening on (\S+)", READY_S)[1]

    def _start_client(self, processes: Processes, address: str, name: str) -> Process:
        options, home = self._options, self._home(name)
        held_out = home / "held-out.jsonl"
        own = ("--data", home / "training.jsonl", "--eval-data", held_out if held_out.exists() else "none")
        limits = (
            "--max-steps",
            most_directions(options.rules()),
            "--max-batch",
            options.batch_size,
            "--max-epsilon",
            1.0,
        )
        threads = options.threads or max(1, (os.cpu_count() or 1) // options.clients)
        shared = {field.name: getattr(options, field.name) for field in fields(ComputeOptions)} | {"threads": threads}
        shared |= {key: getattr(options, key) for key in ("state", "text_field", "eval_batch_size")}
        how = [part for key, value in shared.items() for part in (f"--{option_name(key)}", value)]
        named = ("--model", options.model, "--dir", home, "--name", name)
        return processes.start(name, home / "log", "client", address, *named, *own, *how, *limits)

    def _follow(self, address: str, processes: Processes) -> None:
        """Take records over until the run's end; raises ProcessError where none comes any more."""
        until_s = time.monotonic() + QUIET_S
        with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            stub = RoundsStub(channel)
            while not self._ended:
                processes.check()
                if time.monotonic() > until_s:
                    raise ProcessError(
                        f"no record came for {QUIET_S:g} seconds; look at the logs in {self._run.path}/server and "
                        f"{self._run.path}/clients, then go on with --resume"
                    )
                if self._look(stub):
                    until_s = time.monotonic() + QUIET_S + self._options.deadline

    def _look(self, stub: RoundsStub) -> bool:
        """Take over the records that come for a while; were there any?"""
        before, journal = self._journal.position, self._journal
        request = pb.FollowRequest(position=before, record_hash=journal.record_hash)
        try:
            for message in stub.Follow(request, timeout=LOOK_S):
                self._take(message.steps)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                raise ProcessError(f"the server refused the follower: {error.details()}") from error
        return journal.position > before

    def _take(self, steps: Sequence[pb.Step]) -> None:
        for payload, record_hash in decode_steps(self._setting.genesis, steps):
            before = self._journal.contents.valid_bytes
            record = self._journal.append_copies([(payload, record_hash)])[0]
            position, progress = self._journal.position, self._progress
            count_record(progress, self._setting, record, self._journal.contents.valid_bytes - before)
            self._run.append_metrics(position, record, **progress.measured())
            self._watch(position, record, progress)


def write_client_rows(options: SimulateOptions, homes: Sequence[Path]) -> None:
    """Deal the rows as an inline simulation does, each client's into its own directory.

    Raises:
        DataError: a row cannot be written as JSON.
    """
    rows = read_rows(options.data)
    task = make_task(options, load_tokenizer(options.model), rows)
    for home, (training, held_out) in zip(homes, deal(options, task, rows), strict=True):
        home.mkdir(parents=True, exist_ok=True)
        _write_rows(home / "training.jsonl", training)
        if held_out:
            _write_rows(home / "held-out.jsonl", held_out)


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w") as file:
        for row in rows:
            try:
                file.write(json.dumps(row.fields) + "\n")
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{row.where}: cannot be given to a client as JSON ({error}); use --engine inline"
                ) from error


def hand_over(journal: Path, server: Path) -> None:
    """Give the server the run's journal, unless its own is the same or longer.

    Raises:
        ConfigError: they are not of one run, or went different ways.
    """
    if server.exists():
        ours, theirs = read_journal(journal).hashes, read_journal(server).hashes
        shared = min(len(ours), len(theirs)) - 1
        if ours[shared] != theirs[shared]:
            raise ConfigError(
                f"{server} and {journal} went different ways before position {shared}; to go on from the latter, "
                f"remove {server.parent} and the directory clients beside it"
            )
        if len(theirs) >= len(ours):
            return
    partial = server.with_name(server.name + ".partial")
    shutil.copyfile(journal, partial)
    os.replace(partial, server)
