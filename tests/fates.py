"""What befalls a process at a chosen moment: kill -9 in the middle of a write, where a test would hardly find it.

    append    the journal's frames are written but for the end of the last
    written   they are written, and not durable yet
    durable   they are durable, and nobody was told
    commit    half of the replica's tensors have moved
    state     half of the state file's integers are written over the old ones
    swell     its journal is durable; it is not killed, but takes a gibibyte more from then on
    stray     the replica has moved; it is not killed, but one bit of it flips
    crawl     nothing: it takes COUNT times as long as others over every plan

A fate is "MOMENT:COUNT", the moment at the COUNTth time. It is installed in a process from outside, on the system calls
and the backend, so that the code that dies is the code that is shipped.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fedzo.journal.file import HASH_BYTES
from fedzo.noise import get_backend
from fedzo.state.statefile import PAGE_BYTES
from fedzo.worker import Worker

SERVER = ("append", "written", "durable")
CLIENT = (*SERVER, "commit", "state")
SWELL_BYTES = 1 << 30


def install(fate: str) -> None:
    """Prepare it in this process."""
    moment, _, count = fate.partition(":")
    if moment == "crawl":
        _crawl(int(count))
        return
    due = _countdown(int(count))
    if moment in ("commit", "stray"):
        _befall_commit(moment, due)
    else:
        _die_in_file(moment, due)


def _countdown(count: int) -> Callable[[], bool]:
    left = iter(range(count - 1, -1, -1))
    return lambda: next(left, None) == 0


def _crawl(times: int) -> None:
    carry_out = Worker.carry_out

    def slowly(worker, plan, client, data):
        started_s = time.monotonic()
        report = carry_out(worker, plan, client, data)
        time.sleep((times - 1) * (time.monotonic() - started_s))
        return report

    Worker.carry_out = slowly


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_file(moment: str, due: Callable[[], bool]) -> None:
    """Watch what is written to the journal or the state file."""
    names: dict[int, str] = {}
    unsynced: set[int] = set()
    ballast: list[bytes] = []
    os_open, os_pwrite, os_fsync = os.open, os.pwrite, os.fsync

    def open_(path, *arguments, **options):
        descriptor = os_open(path, *arguments, **options)
        names[descriptor] = Path(path).name
        return descriptor

    def pwrite(descriptor, data, offset):
        name = names.get(descriptor)
        journal = name == "journal" and moment in ("append", "written")
        state = name == "replica.state" and moment == "state" and offset >= PAGE_BYTES
        if (journal or state) and due():
            written = {"append": len(data) - HASH_BYTES - 1, "written": len(data), "state": len(data) // 2}[moment]
            os_pwrite(descriptor, data[:written], offset)
            _die()
        if name == "journal":
            unsynced.add(descriptor)
        return os_pwrite(descriptor, data, offset)

    def fsync(descriptor):
        os_fsync(descriptor)
        if descriptor in unsynced and moment in ("durable", "swell") and due():
            _die() if moment == "durable" else ballast.append(b"x" * SWELL_BYTES)
        unsynced.discard(descriptor)

    os.open, os.pwrite, os.fsync = open_, pwrite, fsync


def _befall_commit(moment: str, due: Callable[[], bool]) -> None:
    kind = type(get_backend())
    commit = kind.commit

    def befallen(self, state, segments, steps, threads):
        now = due()
        if now and moment == "commit":
            commit(self, state, segments[: len(segments) // 2], steps, threads)
            _die()
        commit(self, state, segments, steps, threads)
        if now:
            state[0] ^= 1

    kind.commit = befallen
