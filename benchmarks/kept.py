"""Results of a comparison's cells in one file, so that who has the repository need not run them again.

A line for each cell: its directory among the runs, and what its `result.json` holds.
"""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedzo_simulations.compare.cells import Cell
from fedzo_simulations.compare.queue import Queue

from fedzo.errors import ConfigError
from fedzo.new_file import write_new_file


def keep(queue: Queue, file: Path, others: Collection[str]) -> None:
    """Write what is finished, and what was kept of cells that are not finished here.

    Args:
        queue: of the cells.
        file: to write.
        others: cells that are others than what was kept of them, as `restore` gives them; of their rows nothing stays.
    """
    rows = {row.slug for row in queue.comparison.rows} - {name.partition("/")[0] for name in others}
    kept = {name: result for name, result in _kept(file).items() if name.partition("/")[0] in rows}
    kept |= {_name(queue, cell): asdict(result) for cell in _cells(queue) if (result := cell.result()) is not None}
    if kept:
        lines = [f"{json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(kept)]
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def restore(queue: Queue, file: Path) -> list[str]:
    """Put what was kept where a cell lacks it, but for cells that are others by now.

    Returns:
        Names of those.

    Raises:
        ConfigError: the file is damaged.
    """
    kept, others = _kept(file), []
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
                    others.append(name)
    return others


def _kept(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text()) if file.exists() else {}
    except ValueError as error:
        raise ConfigError(f"{file}: holds no results ({error}); restore it, or remove it to run all anew") from error


def _cells(queue: Queue) -> list[Cell]:
    """Each once, as the table's rows are."""
    found = [cell for row in queue.comparison.rows for cell in [*queue.trials(row), *queue.seeds(row)]]
    return list({cell.path: cell for cell in found}.values())


def _name(queue: Queue, cell: Cell) -> str:
    return cell.path.relative_to(queue.out).as_posix()
