"""Results of a comparison's cells in one file, so that who has the repository need not run them again.

A line for each cell: its directory among the runs, and what its `result.json` holds.
"""

import json
from dataclasses import asdict
from pathlib import Path

from fedzo_simulations.compare.cells import Cell
from fedzo_simulations.compare.queue import Queue
from rich.console import Console

from fedzo.errors import ConfigError
from fedzo.new_file import write_new_file


def keep(queue: Queue, file: Path) -> None:
    """Write what is finished."""
    found = {_name(queue, cell): cell.result() for cell in _cells(queue)}
    lines = [f"{json.dumps(name)}: {json.dumps(asdict(result))}" for name, result in found.items() if result]
    if lines:
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def restore(queue: Queue, file: Path, console: Console) -> None:
    """Put what was kept where a cell lacks it, but for cells that are others by now, which is said.

    Raises:
        ConfigError: the file is damaged.
    """
    if not file.exists():
        return
    try:
        kept = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file}: holds no results ({error}); restore it, or remove it to run all anew") from error
    for row in queue.comparison.rows:
        for cells in (queue.trials, queue.seeds):  # which learning rate the seeds have follows from the trials
            for cell in cells(row):
                result = cell.path / "result.json"
                if (name := _name(queue, cell)) not in kept or result.exists() or cell.run.journal.exists():
                    continue
                cell.path.mkdir(parents=True, exist_ok=True)
                write_new_file(result, json.dumps(kept[name]).encode())
                try:
                    cell.result()
                except ConfigError:
                    result.unlink()
                    console.print(f"not what was kept, so it is run again: {cell.name}")


def _cells(queue: Queue) -> list[Cell]:
    """Each once, as the table's rows are."""
    found = [cell for row in queue.comparison.rows for cell in [*queue.trials(row), *queue.seeds(row)]]
    return list({cell.path: cell for cell in found}.values())


def _name(queue: Queue, cell: Cell) -> str:
    return cell.path.relative_to(queue.out).as_posix()
