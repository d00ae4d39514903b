"""What 16-bit weights lose: MeZO in place in bfloat16 against integers with a bfloat16 forward.

    FEDZO_SHARED=DIR python -m benchmarks.precision [--steps 1000] [--json FILE]

1. Of the updates that a run asks for, the share that reaches the weights, at several learning rates,
   in bfloat16 in place and in the fixed-point state.
2. Of the elements that ±ε perturbs, the share that a bfloat16 forward does not feel: w + ε rounds to w; by tensor.
3. Loss curves of both on the pretrained stories260K and Shakespeare's text, from the same directions and batches.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from fedzo_simulations.baselines.mezo import Mezo, plain_loss, rademacher_direction
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.report import environment
from fedzo.base.checkpoint import Base, load_base, load_tokenizer, unique_parameters
from fedzo.estimate import Batch, Estimator
from fedzo.estimate.felt import MUCH, unfelt
from fedzo.journal import Entry
from fedzo.methods.method import projected_gradient
from fedzo.noise import COEFFICIENT_BITS, Distribution
from fedzo.state.replica import Replica
from fedzo.tasks.rows import read_rows

THREADS = 2
_UNIT = 2**COEFFICIENT_BITS
_EPSILON = 1e-3
_GRADIENT = 10.0
"""A projected gradient as large models have it."""
_SEEDS = 64
_BATCH, _LENGTH, _HELD_OUT = 16, 128, 64
_RATES = (1e-4, 1e-5, 1e-6, 1e-7)
_TRAINED_AT = (1e-4, 3e-5, 1e-5)


def main() -> int:
    """Exit code 0."""
    arguments = _arguments()
    shared = Path(os.environ["FEDZO_SHARED"])
    torch.set_num_threads(THREADS)
    console, about = Console(width=120), environment(THREADS)
    source = str(shared / "data" / "weights" / "stories260K")
    arrived = [_arrived(source, rate) for rate in _RATES]
    felt = _felt(source)
    curves = _curves(source, shared / "data" / "text" / "shakespeare_by_role.json.gz", arguments.steps)
    _show(console, arrived, felt, curves, about)
    found = {"environment": about, "arrived": arrived, "unfelt": felt, "curves": curves}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "precision.json")
    parser.add_argument("--steps", type=int, default=1000, help="of each loss curve")
    return parser.parse_args()


def _arrived(source: str, rate: float) -> dict[str, float]:
    """Mean over seeds of how far the weights move along −z, as a share of η·g; and the elements that move at all."""
    base = load_base(source)
    model = deepcopy(base.model).bfloat16()
    replica = Replica.from_base(base, Distribution.RADEMACHER, threads=THREADS)
    step = rate * _GRADIENT
    ours = in_place = moved = 0.0
    for seed in range(_SEEDS):
        direction = rademacher_direction(seed)
        before = replica.state.clone()
        replica.add([Entry(seed, -round(step * _UNIT))])
        change = (replica.state - before).double()
        for index, (spec, part) in enumerate(zip(replica.manifest, change.split(_sizes(replica)), strict=True)):
            weight = list(unique_parameters(model).values())[index].detach()
            z = direction(index, weight.float()).double()
            ours -= float((part.view(z.shape) * z).sum()) * 2.0**-spec.exponent
            after = weight + (-step * z).bfloat16()
            in_place -= float(((after.double() - weight.double()) * z).sum())
            moved += int((after != weight).sum())
        replica.add([Entry(seed, round(step * _UNIT))])
    asked = _SEEDS * replica.manifest.elements
    return {
        "learning_rate": rate,
        "ours": ours / asked / step,
        "bfloat16_in_place": in_place / asked / step,
        "bfloat16_elements_moved": moved / asked,
    }


def _sizes(replica: Replica) -> list[int]:
    return [spec.size for spec in replica.manifest]


def _felt(source: str) -> dict[str, float]:
    replica = Replica.from_base(load_base(source), Distribution.RADEMACHER, threads=THREADS)
    return unfelt(replica, round(_EPSILON * _UNIT), torch.bfloat16)


def _curves(source: str, text: Path, steps: int) -> list[dict[str, Any]]:
    """Held-out losses of both from equal seeds, batches, learning rates; linear decay to zero."""
    tokenizer = load_tokenizer(source)
    rows = read_rows(str(text))
    ids = torch.tensor(tokenizer("\n".join(str(row.fields["text"]) for row in rows))["input_ids"])
    windows = ids[: len(ids) // _LENGTH * _LENGTH].view(-1, _LENGTH)
    windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]
    held_out, training = windows[:_HELD_OUT], windows[_HELD_OUT:]
    found = []
    for rate in _TRAINED_AT:
        for name, run in (("ours, bfloat16 forward", _ours), ("MeZO in place, bfloat16", _in_place)):
            losses = list(run(load_base(source), training, held_out, rate, steps))
            found.append({"name": name, "learning_rate": rate, "every": max(1, steps // 10), "losses": losses})
    return found


def _batch(rows: torch.Tensor) -> Batch:
    return {"input_ids": rows, "labels": rows, "use_cache": False}


def _batches(training: torch.Tensor, steps: int) -> Iterator[tuple[int, Batch]]:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        yield step, _batch(training[torch.randint(len(training), (_BATCH,), generator=generator)])


def _ours(base: Base, training: torch.Tensor, held_out: torch.Tensor, rate: float, steps: int) -> Iterator[float]:
    epsilon = round(_EPSILON * _UNIT)
    replica = Replica.from_base(base, Distribution.RADEMACHER, threads=THREADS)
    estimator = Estimator(base.model, replica, dtype=torch.bfloat16)
    for step, batch in _batches(training, steps):
        if step % max(1, steps // 10) == 0:
            yield estimator.losses(_batch(held_out), [(0, (0,))])[0][0]
        plus, minus = estimator.losses(batch, [(step, (epsilon, -epsilon))])[0]
        slope = projected_gradient(plus, minus, epsilon)
        replica.add([Entry(step, -round(rate * (1 - step / steps) * slope * _UNIT))])
    yield estimator.losses(_batch(held_out), [(0, (0,))])[0][0]


def _in_place(base: Base, training: torch.Tensor, held_out: torch.Tensor, rate: float, steps: int) -> Iterator[float]:
    model: nn.Module = base.model.bfloat16()
    for step, batch in _batches(training, steps):
        if step % max(1, steps // 10) == 0:
            yield plain_loss(model, _batch(held_out))
        decayed = rate * (1 - step / steps)
        Mezo(model, rademacher_direction, epsilon=_EPSILON, learning_rate=decayed).step(batch, step)
    yield plain_loss(model, _batch(held_out))


def _show(
    console: Console,
    arrived: list[dict[str, float]],
    felt: dict[str, float],
    curves: list[dict[str, Any]],
    about: dict[str, Any],
) -> None:
    table = Table(title=f"Share of the updates asked for that arrives, g = {_GRADIENT:g}, {_SEEDS} directions")
    for heading in ("learning rate", "ours", "bfloat16 in place", "its elements that move at all"):
        table.add_column(heading, justify="right")
    for row in arrived:
        rate, *shares = row.values()
        table.add_row(f"{rate:g}", *(f"{share:.2%}" for share in shares))
    console.print(table)
    console.print(f"Elements that a bfloat16 forward does not feel at epsilon {_EPSILON:g}:")
    for name, share in sorted(felt.items(), key=lambda item: -item[1]):
        console.print(f"  {share:7.2%} {name}{'   <- warned of' if share > MUCH else ''}", highlight=False)
    for curve in curves:
        losses = " ".join(f"{loss:.3f}" for loss in curve["losses"])
        console.print(f"lr {curve['learning_rate']:g}, {curve['name']}: {losses}", highlight=False)
    console.print(", ".join(f"{name}: {value}" for name, value in about.items()))


if __name__ == "__main__":
    sys.exit(main())
