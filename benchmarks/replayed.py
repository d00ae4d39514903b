"""Every run that `make results` made, replayed from its base on each CPU backend, all its digests checked.

    python -m benchmarks.replayed [--runs runs/results]

Runs of a module that a function made have no base to begin from, and are counted apart.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.results import RUNS
from fedzo.noise import get_backend
from fedzo.results.rebuild import rebuild
from fedzo.run_directory import RunDirectory

BACKENDS = ("numba", "torch")


def main() -> int:
    """Exit code 0 where there was a run; a digest that differs is an error by name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replayed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=RUNS, help="directory of all runs")
    replayed = records = digests = without_base = 0
    for result in sorted(parser.parse_args().runs.glob("*/*/*/result.json")):
        run = RunDirectory(result.parent)
        if not run.journal.exists():
            continue  # a baseline
        if json.loads(result.read_text())["options"]["subject"]:
            without_base += 1
            continue
        for name in BACKENDS:
            _, _, contents = rebuild(run, backend=get_backend(name))
        replayed += 1
        records += contents.position
        digests += sum(record.state_digest is not None for record in contents.records)
    print(f"{replayed} runs, {records:,} records, each with {' and '.join(BACKENDS)}: all {digests:,} digests agree")
    if without_base:
        print(f"{without_base} runs of modules in memory, which have no base to begin from, were not replayed")
    return int(replayed == 0)


if __name__ == "__main__":
    sys.exit(main())
