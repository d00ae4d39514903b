"""What a benchmark found: a table for people, JSON for machines."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.checks import Check
from benchmarks.timing import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One ratio."""

    name: str
    ratio: Spread
    target: float | None
    """The ratio is to be at most this; None where it is only told."""
    milliseconds: dict[str, float]
    """Median time of each side."""


def environment(threads: int) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "numba")},
    }


def print_check(console: Console, check: Check) -> None:
    """One line: did it hold, and what was found."""
    console.print(f"{'ok      ' if check.holds else 'MISMATCH'}  {check.claim}: {check.found}", soft_wrap=True)


def print_table(console: Console, lines: list[Line], about: dict[str, Any]) -> None:
    """All ratios, and under them where they were measured."""
    table = Table(title="Ratios of times: median over the turns")
    table.add_column("what ÷ what")
    for heading in ("ratio", "target", "quartiles", "least … most"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("median times, ms", no_wrap=True)
    for line in lines:
        times = "\n".join(f"{name} {time:.1f}" for name, time in line.milliseconds.items())
        table.add_row(line.name, *_ratio_cells(line), times)
    console.print(table)
    console.print(", ".join(f"{name}: {value}" for name, value in about.items()))


def write_json(path: Path, lines: list[Line], checks: list[Check], about: dict[str, Any]) -> None:
    """The same as JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "environment": about,
        "checks": [check._asdict() for check in checks],
        "lines": [asdict(line) for line in lines],
    }
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def _ratio_cells(line: Line) -> tuple[str, str, str, str]:
    ratio = line.ratio
    target = "" if line.target is None else f"≤ {line.target:.2f} {'met' if ratio.median <= line.target else 'MISSED'}"
    quartiles = f"{ratio.lower_quartile:.3f} … {ratio.upper_quartile:.3f}"
    return f"{ratio.median:.3f}", target, quartiles, f"{ratio.least:.3f} … {ratio.most:.3f}"


def _cpu_model() -> str:
    """As Linux names it; what Python knows elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
