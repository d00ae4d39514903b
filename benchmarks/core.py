"""The core against what it is measured by: plain forwards, `torch.add`, and MeZO.

    OMP_WAIT_POLICY=passive python -m benchmarks.core [--json FILE] [--pairs 20]

Checks come first, and a mismatch ends the run with exit code 1. A missed target does not: see the table. Two thread
pools, torch's and the noise kernels', share the cores; the wait policy keeps the idle one from spinning.
"""

import argparse
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from itertools import count
from pathlib import Path

import torch
from fedzo_simulations.baselines.mezo import Mezo, normal_direction, plain_loss
from rich.console import Console

from benchmarks.checks import run_checks
from benchmarks.report import Line, environment, print_check, print_table, write_json
from benchmarks.subject import EPSILON, LEARNING_RATE, Subject
from benchmarks.timing import Side, Turns
from fedzo.estimate import Estimator, weights_of
from fedzo.journal import Entry
from fedzo.methods.method import projected_gradient
from fedzo.noise import COEFFICIENT_BITS
from fedzo.state.drift import PATIENCE

THREADS = 2
REPLAYED = 32
_COPIES = ("bf16", "int8")
_WIDTH = 120
"""Columns of the table where the output is no terminal."""
_UNIT = 2**COEFFICIENT_BITS


def main() -> int:
    """Exit code 0 where every check holds."""
    arguments = _arguments()
    torch.set_num_threads(THREADS)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    about = environment(THREADS)
    subject = Subject.opt(THREADS)
    checks = []
    for check in run_checks(subject, _entries(first=100)):
        print_check(console, check)
        checks.append(check)
    if not all(check.holds for check in checks):
        return 1
    lines = [made for part in (_estimator_lines, _noise_lines, _copy_lines) for made in part(subject, arguments.pairs)]
    print_table(console, lines, about)
    write_json(arguments.json, lines, checks, about)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.core", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "core.json")
    parser.add_argument("--pairs", type=int, default=20, help="turns of each comparison")
    return parser.parse_args()


def _estimator_lines(subject: Subject, pairs: int) -> Iterator[Line]:
    """Lines 1, 2 and 5: a step against two plain forwards, and MeZO's step against both."""
    seeds = count(1)
    mezo = Mezo(deepcopy(subject.plain), normal_direction, epsilon=EPSILON / _UNIT, learning_rate=LEARNING_RATE)

    def forwards() -> None:
        plain_loss(subject.plain, subject.batch)
        plain_loss(subject.plain, subject.batch)

    def estimate() -> Entry:
        seed = next(seeds)
        loss_plus, loss_minus = subject.estimator.losses(subject.batch, [(seed, (EPSILON, -EPSILON))])[0]
        gradient = projected_gradient(loss_plus, loss_minus, EPSILON)
        return Entry(seed, -round(LEARNING_RATE * gradient * _UNIT))

    def step() -> None:
        subject.replica.add([estimate()])

    two = "two forwards"
    yield _pair("1. both losses and the scalar ÷ two forwards", 1.05, {two: forwards, "ours": estimate}, pairs)
    yield _pair("2. the same and the commit ÷ two forwards", 1.10, {two: forwards, "ours": step}, pairs)
    sides = {two: forwards, "ours": step, "MeZO": lambda: mezo.step(subject.batch, next(seeds))}
    turns = Turns(sides, pairs)
    times = turns.milliseconds()
    for name, below in (("5. MeZO's step ÷ two forwards", two), ("5. MeZO's step ÷ ours", "ours")):
        yield Line(name=name, ratio=turns.ratio("MeZO", below), target=None, milliseconds=times)


def _noise_lines(subject: Subject, pairs: int) -> Iterator[Line]:
    """Lines 3 and 4: the noise kernels over the whole model against `torch.add` of as many floats."""
    replica = subject.replica
    seeds = count(1000)
    everything = range(len(replica.manifest))
    targets = replica.manifest.starts
    weights, out = subject.materialised(), subject.materialised()
    z, sums = torch.ones_like(weights), torch.empty_like(weights)

    def add() -> None:
        torch.add(weights, z, alpha=EPSILON / _UNIT, out=sums)

    def materialise() -> None:
        increments = replica.increments([replica.overlay({}, [(next(seeds), EPSILON)])])
        replica.materialise(everything, targets, increments, out)

    def replay() -> None:
        replica.add(_entries(first=REPLAYED * next(seeds)))

    plain: dict[str, Side] = {"torch.add": add}
    yield _pair("3. materialising one entry ÷ torch.add", 2.0, {**plain, "ours": materialise}, pairs)
    yield _pair("4. replay, per entry ÷ torch.add", 0.5, {**plain, f"{REPLAYED} entries": replay}, pairs, REPLAYED)


def _copy_lines(_: Subject, pairs: int) -> Iterator[Line]:
    """Line 6: both losses from a compute copy against the exact state, right at the copy's anchor and far from it."""
    subject = Subject.opt(THREADS)
    replica, seeds = subject.replica, count(2000)

    def losses(estimator: Estimator) -> None:
        estimator.losses(subject.batch, [(next(seeds), (EPSILON, -EPSILON))])

    sides: dict[str, Side] = {"exact": partial(losses, subject.estimator)}
    for kind in _COPIES:
        weights = weights_of(replica, kind, "host", Path())
        sides[kind] = partial(losses, Estimator(deepcopy(subject.plain), replica, weights=weights))
    for waiting in (0, PATIENCE):
        replica.add(_entries(first=100)[:waiting])
        turns = Turns(sides, pairs)
        for kind in _COPIES:
            name = f"6. both losses from a {kind} copy in memory ÷ from the state, {waiting} entries since"
            yield Line(name=name, ratio=turns.ratio(kind, "exact"), target=None, milliseconds=turns.milliseconds())


def _pair(name: str, target: float, sides: dict[str, Side], pairs: int, parts: int = 1) -> Line:
    """The second side against the first."""
    below, above = sides
    turns = Turns(sides, pairs)
    ratio = turns.ratio(above, below, parts=parts)
    return Line(name=name, ratio=ratio, target=target, milliseconds=turns.milliseconds())


def _entries(first: int) -> list[Entry]:
    """Steps of the size that training makes, with seeds of their own."""
    size = round(LEARNING_RATE * _UNIT)
    return [Entry(first + k, size if k % 2 else -size) for k in range(REPLAYED)]


if __name__ == "__main__":
    sys.exit(main())
