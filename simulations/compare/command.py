"""`fedzo compare`, from parsed options to a table; what is not finished is run, what is finished is read."""

import json
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedzo.config import read_toml
from fedzo.errors import ConfigError
from fedzo.results.plot import draw

from .jobs import run_all
from .plan import BUDGETS, Comparison, read_comparison
from .queue import Queue
from .summary import curves, summary, table_of

_WIDTH = 170
"""Columns of the table where the output is no terminal."""


def console_for_tables() -> Console:
    """Standard output, wide enough where nobody looks at it."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False, soft_wrap=False)


def comparison_of(methods: list[str], config: Path | None, given: dict[str, Any], base: dict[str, Any]) -> Comparison:
    """From the command line and a TOML file, which it overrides; methods are rows of their own.

    Args:
        methods: names of methods and baselines.
        config: a TOML file.
        given: keys of `Comparison` that were given.
        base: options of `fedzo simulate` that were given.

    Raises:
        ConfigError: by name.
    """
    values = {k.replace("-", "_"): v for k, v in read_toml(config).items()} if config else {}
    if any(name in given for name in BUDGETS):
        values = {key: value for key, value in values.items() if key not in BUDGETS}
    rows = [*values.get("row", []), *({"method": method} for method in methods)]
    return read_comparison(values | given | {"row": rows}, str(config or "fedzo compare"), base)


def run_comparison(
    comparison: Comparison, out: Path, console: Console, *, jobs: int = 1, at_most: int | None = None
) -> Queue:
    """Run the cells that are not finished, in order.

    Args:
        comparison: what to run.
        out: directory of all cells.
        console: is told of each.
        jobs: cells at a time.
        at_most: cells to run; all where None.

    Raises:
        ConfigError: no job, or a row's options, before any cell is run.
    """
    if jobs < 1:
        raise ConfigError(f"option jobs is {jobs}; it must be at least 1")
    queue = Queue(comparison, out)
    _check(queue)
    for cell, result in run_all(queue, jobs, at_most):
        last = result.points[-1]
        console.print(f"{cell.name}: {last.forwards:,} forwards, held-out loss {result.loss:.4f}")
    return queue


def show(queue: Queue, console: Console) -> None:
    """The table, and what is missing of it."""
    first, *lines = table_of(queue)
    table = Table(title=queue.comparison.title or None)
    for number, heading in enumerate(first):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    for name in queue.missing():
        console.print(f"missing: {name}")


def write_outcome(queue: Queue) -> None:
    """`comparison.json` and, where matplotlib is installed, `comparison.png` beside the cells."""
    queue.out.mkdir(parents=True, exist_ok=True)
    found = {"title": queue.comparison.title, "missing": queue.missing(), "rows": [asdict(x) for x in summary(queue)]}
    (queue.out / "comparison.json").write_text(json.dumps(found, indent=1) + "\n")
    drawn = curves(queue)
    if drawn and find_spec("matplotlib") is not None:
        (queue.out / "comparison.png").write_bytes(draw(drawn))


def _check(queue: Queue) -> None:
    """Refuse a row that cannot run before any has: options of every row at every learning rate."""
    if queue.out.exists() and not queue.out.is_dir():
        raise ConfigError(f"{queue.out}: is a file; give --out a directory")
    for row in queue.comparison.rows:
        for cell in queue.trials(row) or queue.seeds(row):
            cell.options()
