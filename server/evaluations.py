"""Evaluations that a server makes itself: a line each in a file of the run's directory, none in the journal."""

import json
from math import isfinite
from pathlib import Path
from typing import Any

from fedzo.coordinator import Plan, Purpose
from fedzo.errors import DataError
from fedzo.journal import Genesis
from fedzo.state.replica import Replica
from fedzo.tasks.examples import ClientExamples
from fedzo.tasks.rows import read_rows
from fedzo.tasks.task import Task
from fedzo.worker import ClientData, Worker


class Evaluations:
    """The file, and what makes its lines.

    Args:
        path: of the file; a torn last line is cut off.
        worker: evaluates.
        data: what it evaluates on.
    """

    def __init__(self, path: Path, worker: Worker, data: ClientData) -> None:
        self._path = path
        self._worker = worker
        self._data = data
        self.position = -1
        """Of the last evaluation."""
        content = path.read_text() if path.exists() else ""
        whole = content[: content.rfind("\n") + 1]
        if whole != content:
            path.write_text(whole)
        if whole:
            self.position = json.loads(whole.splitlines()[-1])["position"]

    def evaluate(self, replica: Replica, number: int) -> str:
        """Evaluate the worker's replica after a round and write the line; what was found, for people."""
        plan = Plan(
            purpose=Purpose.EVALUATE,
            round=number,
            position=replica.position,
            record_hash=replica.record_hash,
            cohort=(),
            learning_rate=0.0,
            attest=False,
            deadline_s=0.0,
        )
        found = self._worker.carry_out(plan, 0, self._data)
        line: dict[str, Any] = {"position": replica.position, "round": number, "examples": found.examples}
        line["held_out_loss"] = found.loss if isfinite(found.loss) else None
        if found.metric is not None:
            line["metric"] = found.metric
        line["state_digest"] = replica.digest().hex()
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.position = replica.position
        return f"round {number}: held-out loss {found.loss:.4f} on the server's own rows"


def load_held_out(genesis: Genesis, task: Task, source: str) -> ClientData:
    """Rows to evaluate on.

    Raises:
        DataError, ConfigError: by name.
    """
    examples = task.examples(task.rows(read_rows(source), source))
    if not examples:
        raise DataError(f"{source}: holds no examples to evaluate on; give other rows with --evaluate-on")
    return ClientExamples(
        examples,
        examples,
        collate=task.collate,
        length=task.length,
        run_seed=genesis.run_seed,
        client=0,
        evaluation_batch=genesis.rules.batch_size,
    )
