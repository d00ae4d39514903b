"""Simulations whose clients are other processes, under way in one of their own, to be disturbed."""

import json
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from network import WAIT_S, wait_until

from fedzo.journal import read_journal


class UnderWay(ABC):
    """A `fedzo simulate` under way; what it leaves is killed with it.

    Args:
        command: with its arguments.
        out: its run directory.
        environment: variables, beside those of this process.
    """

    def __init__(self, command: list[object], out: Path, **environment: str) -> None:
        self.out = out
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.communicate()
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)

    @abstractmethod
    def pids(self) -> list[int]:
        """Of its processes that run."""

    def wait_for_position(self, position: int) -> None:
        journal = self.out / "journal"
        wait_until(
            lambda: (
                self._process.poll() is not None or (journal.exists() and read_journal(journal).position >= position)
            ),
            f"position {position}",
        )
        assert self._process.poll() is None, self.said()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def said(self) -> str:
        """All that it printed, when it has ended."""
        return self._process.communicate(timeout=WAIT_S)[0]

    @property
    def returncode(self) -> int | None:
        return self._process.returncode


def counted(run: Path) -> list[dict]:
    """A run's metrics but for the time they took."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
