"""What a scope costs: weights of two lanes and a commit, against scope `all`, in turns and in one process.

    python -m benchmarks.scopes [--turns 15] [--json FILE]

The model reads its weights and computes nothing, so that the figures are those of the noise and the state alone. It
has 16 blocks of a million weights, and is held in memory.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.report import environment
from benchmarks.timing import Turns
from fedzo.base.checkpoint import Base, base_digest
from fedzo.estimate import Estimator
from fedzo.journal import Entry
from fedzo.noise import Distribution
from fedzo.scopes import ALL, Kind, Scope
from fedzo.state.replica import Replica

THREADS = 2
_BLOCKS, _WIDTH = 16, 1024
_EPSILON = 2**30
_SPARSE = "sparse, 0.75"


class _Layer(nn.Module):
    """One block of weights; its forward looks at one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(_WIDTH, _WIDTH))

    def forward(self, total: torch.Tensor) -> torch.Tensor:
        return total + self.weight[0, 0]


class _Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer() for _ in range(_BLOCKS))

    def forward(self, total: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            total = layer(total)
        return total


def main() -> int:
    """Exit code 0."""
    arguments = _arguments()
    torch.set_num_threads(THREADS)
    scopes = {"all": ALL, _SPARSE: Scope(kind=Kind.SPARSE, sparsity=750_000)}
    scopes |= {f"layers, {k} of {_BLOCKS}": Scope(kind=Kind.LAYERS, layers_per_direction=k) for k in (1, 4, 8, 16)}
    pairs = {name: _sides(scope) for name, scope in scopes.items()}
    found = {}
    for place, what in enumerate(("weights of two lanes", "commit")):
        turns = Turns({name: sides[place] for name, sides in pairs.items()}, arguments.turns)
        found[what] = {name: asdict(turns.ratio(name, "all")) for name in scopes}
        found[what]["milliseconds"] = turns.milliseconds()
    _show(found, list(scopes))
    elements = _BLOCKS * _WIDTH**2
    about = {"environment": environment(THREADS), "state_bytes": 4 * elements, "mask_bytes": elements // 8}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(about | found, indent=2) + "\n")
    return 0


def _sides(scope: Scope) -> tuple[Callable[[], object], Callable[[], object]]:
    """Both lanes' weights at a new seed, and a commit of a new seed."""
    torch.manual_seed(0)
    model = _Reader()
    base = Base("reader", model, base_digest(model))
    replica = Replica.from_base(base, Distribution.RADEMACHER, scope=scope, threads=THREADS)
    estimator = Estimator(model, replica, loss=lambda model, batch: model(batch["start"]))
    batch, seeds = {"start": torch.zeros(())}, count(1)
    return (
        lambda: estimator.losses(batch, [(next(seeds), (_EPSILON, -_EPSILON))]),
        lambda: replica.add([Entry(next(seeds), 10**6)]),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scopes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "scopes.json")
    parser.add_argument("--turns", type=int, default=15)
    return parser.parse_args()


def _show(found: dict, scopes: list[str]) -> None:
    table = Table("scope ÷ all", *found, title="Cost of scopes (median, quartiles)")
    for name in scopes:
        spreads = [found[what][name] for what in found]
        table.add_row(
            name, *(f"{s['median']:.2f} ({s['lower_quartile']:.2f} to {s['upper_quartile']:.2f})" for s in spreads)
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
