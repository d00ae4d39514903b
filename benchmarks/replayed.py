"""Every run that `make results` made, replayed from its base on each CPU backend, all its digests checked.

    python -m benchmarks.replayed [--runs runs/results]

Of an asynchronous run the records are besides taken back and added again, both in an order of chance: what is there
then must have the base's digest, and the digest of the end.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedzo_simulations.compare.subject import make_subject
from fedzo_simulations.options import SimulateOptions

from benchmarks.results import RUNS
from fedzo.base.checkpoint import Base, base_digest
from fedzo.config import make_options, parse_options, read_toml
from fedzo.journal import Entry, JournalContents
from fedzo.noise import get_backend
from fedzo.results.rebuild import rebuild
from fedzo.run_directory import RunDirectory
from fedzo.state.replica import Replica

BACKENDS = ("numba", "torch")


def main() -> int:
    """Exit code 0 where there was a run; a digest that differs is an error by name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replayed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=RUNS, help="directory of all runs")
    replayed = records = digests = shuffled = 0
    for result in sorted(parser.parse_args().runs.glob("*/*/*/result.json")):
        run = RunDirectory(result.parent)
        if not run.journal.exists():
            continue  # a baseline
        base = _base(run, json.loads(result.read_text())["options"]["subject"])
        for name in BACKENDS:
            replica, _, contents = rebuild(run, base(), backend=get_backend(name))
            if contents.genesis.rules.asynchronous:
                _shuffle(run, replica, contents)
        replayed += 1
        shuffled += contents.genesis.rules.asynchronous
        records += contents.position
        digests += sum(record.state_digest is not None for record in contents.records)
    print(f"{replayed} runs, {records:,} records, each with {' and '.join(BACKENDS)}: all {digests:,} digests agree")
    print(f"{shuffled} of them asynchronous, their records in an order of chance too")
    return int(replayed == 0)


def _base(run: RunDirectory, subject: Mapping[str, Any]) -> Callable[[], Base | None]:
    """Makes what a run began from; None where its config names it."""
    if not subject:
        return lambda: None
    options = make_options(SimulateOptions, parse_options(SimulateOptions, read_toml(run.config), str(run.config)))

    def made() -> Base:
        model = make_subject(subject, options).model
        return Base(source=options.model, model=model, digest=base_digest(model))

    return made


def _shuffle(run: RunDirectory, replica: Replica, contents: JournalContents) -> None:
    """Take all records back and add them again, in two orders.

    Raises:
        RuntimeError: the digest is not that of the base, or of the end.
    """
    end, chance = replica.digest(), random.Random(0)
    records = [record.entries for record in contents.records]
    orders = [chance.sample(records, len(records)) for _ in range(2)]
    for entries in orders[0]:
        replica.add([Entry(seed, -coefficient) for seed, coefficient in entries])
    base = replica.digest()
    for entries in orders[1]:
        replica.add(entries)
    stated = next(record.state_digest for record in contents.records if record.state_digest)
    if base != stated or replica.digest() != end:
        raise RuntimeError(f"{run.path}: records in another order give another digest")


if __name__ == "__main__":
    sys.exit(main())
