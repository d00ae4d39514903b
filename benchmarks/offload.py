"""A model larger than its memory, trained from disk: peak memory, and time against forwards and the disk.

    OMP_WAIT_POLICY=passive python -m benchmarks.offload [--gigabytes 4] [--allowed-mb 960] [--rows 1,16] [--turns 5]

A random Llama-shaped checkpoint is written to a disk. One process runs a few steps with its state in memory, another
with its state on disk, batches of every size given: losses and digests must be equal, and the second's peak resident
memory, interpreter included, is held against what is allowed. Then the second times its parts in turns, past the page
cache, from which the state file is evicted besides: for every size of a batch a step, and two forwards of the same
model in memory; and a plain read of the file. Last, steps of several directions that go through the model together, on
one row, so that what counts is reading the file, which is done once for all of them; losses are those of one direction
at a time.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import count
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.checks import Check
from benchmarks.report import Line, environment, print_check, print_table, write_json
from benchmarks.timing import Spread, Turns
from fedzo.base.checkpoint import load_base
from fedzo.base.manifest import Manifest
from fedzo.estimate import Batch, Estimator
from fedzo.journal import Entry
from fedzo.noise import COEFFICIENT_BITS, Distribution
from fedzo.state.replica import Replica
from fedzo.tiers.choice import place_of
from fedzo.tiers.disk import DiskStore
from fedzo.tiers.store import Store

THREADS = 2
_EPSILON = round(1e-3 * 2**COEFFICIENT_BITS)
_LAYER = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "vocab_size": 4096}
_LAYER_ELEMENTS = 4 * 1024**2 + 3 * 1024 * 4096
_TOKENS = 64
_READ_BYTES = 1 << 23
_DIRECTIONS = (1, 4, 16)


def main() -> int:
    """Exit code 0 where losses and digests are equal; a missed target does not change it: see the table."""
    arguments = _arguments()
    torch.set_num_threads(THREADS)
    if arguments.measure:
        print(json.dumps(_measure(arguments.dir, arguments.measure, arguments.rows, arguments.turns)))
        return 0
    console, about = Console(width=120), environment(THREADS)
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="fedzo-offload-") as made:
        _write_model(Path(made), round(arguments.gigabytes * 1e9 / 4 / _LAYER_ELEMENTS))
        memory, disk = (_in_its_own_process(Path(made), tier, arguments) for tier in ("host", "disk"))
    said = f"{disk['digest'][:16]}… and {memory['digest'][:16]}…"
    check = Check("losses and digest from disk are those from memory", disk["found"] == memory["found"], said)
    print_check(console, check)
    if not check.holds:
        return 1
    allowed, weights = arguments.allowed_mb * 1e6, disk["weights_bytes"]
    console.print(
        f"weights in float32 {weights / 1e6:,.0f} MB; peak resident memory from disk "
        f"{disk['peak_bytes'] / 1e6:,.0f} MB "
        f"(allowed {allowed / 1e6:,.0f}, weights ÷ allowed {weights / allowed:.2f}); in memory "
        f"{memory['peak_bytes'] / 1e6:,.0f} MB; a pass that brings the file up to date {disk['rewrite_s']:.2f} s"
    )
    lines = [
        Line(
            name=f"{name}, {rows} × {_TOKENS} tokens",
            ratio=Spread(**timed["ratios"][side]),
            target=target,
            milliseconds=timed["milliseconds"],
        )
        for rows, timed in disk["timed"].items()
        for name, side, target in (
            ("a step from disk ÷ two forwards in memory", "two forwards", None),
            ("a step from disk ÷ reading its bytes", "read", None),
            ("a step from disk ÷ the larger of both", "larger", 1.3),
        )
    ]
    lines += [
        Line(
            name=f"a direction of {count} together ÷ one by itself",
            ratio=Spread(**disk["together"][str(count)]),
            target=None,
            milliseconds=disk["together_milliseconds"],
        )
        for count in _DIRECTIONS[1:]
    ]
    print_table(console, lines, about)
    write_json(arguments.json, lines, [check], about | {"host": memory, "disk": disk})
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offload", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "offload.json")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the weights in float32")
    parser.add_argument("--allowed-mb", type=float, default=960, help="peak resident memory to stay under")
    parser.add_argument("--rows", type=_numbers, default=[1, 16], help=f"of a batch, {_TOKENS} tokens each")
    parser.add_argument("--turns", type=int, default=5, help="turns of each comparison")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the files go: a real disk")
    parser.add_argument("--measure", choices=("host", "disk"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _write_model(where: Path, layers: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**_LAYER, num_hidden_layers=layers, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(where, max_shard_size="1GB")


def _in_its_own_process(model: Path, tier: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.offload", "--dir", model, "--measure", tier]
    command += ["--rows", ",".join(map(str, arguments.rows)), "--turns", str(arguments.turns)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _measure(model: Path, tier: str, sizes: list[int], turns: int) -> dict[str, Any]:
    """Run a few steps; from disk, then time them."""
    state = model / "replica.state"
    base = load_base(str(model))
    replica = Replica.from_base(base, Distribution.RADEMACHER, threads=THREADS, place=_place(tier, state))
    estimator = Estimator(base.model, replica)
    found = []
    for step in range(2):
        found += [estimator.losses(_batch(rows), [(step, (_EPSILON, -_EPSILON))]) for rows in sizes]
        replica.add(Entry(100 * step + k, 10**8) for k in range(1 + 20 * step))
    replica.keep(state)
    digest = replica.digest().hex()
    measured = {
        "found": [found, digest],
        "digest": digest,
        "peak_bytes": _peak_bytes(),
        "weights_bytes": 4 * replica.manifest.elements,
    }
    if tier == "host":
        return measured
    timed = {rows: _timed(model, state, replica, estimator, _batch(rows), turns) for rows in sizes}
    rewritten = Turns({"rewrite": replica.digest}, 1, before=lambda: replica.add([Entry(2000, 10**6)]))
    measured |= {"timed": timed, "rewrite_s": rewritten.milliseconds()["rewrite"] / 1000}
    return measured | _together(model, state, replica, turns)


def _batch(rows: int) -> Batch:
    ids = torch.arange(_TOKENS * rows).reshape(rows, _TOKENS) % _LAYER["vocab_size"]
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def _place(tier: str, state: Path) -> Callable[[Manifest], Store]:
    """As `place_of`, with a state on disk read past the page cache however much memory there is."""
    return place_of(tier, state) if tier == "host" else lambda manifest: DiskStore(state, manifest, cached=False)


def _timed(
    model: Path, state: Path, replica: Replica, estimator: Estimator, batch: Batch, turns: int
) -> dict[str, Any]:
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    seeds = count(1000)

    def forwards() -> None:
        with torch.inference_mode():
            plain(**batch)
            plain(**batch)

    def step() -> None:
        seed = next(seeds)
        estimator.losses(batch, [(seed, (_EPSILON, -_EPSILON))])
        replica.add([Entry(seed % 8, 10**6)])

    def read() -> None:
        descriptor = os.open(state, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
        with mmap(-1, _READ_BYTES) as buffer:
            while os.readv(descriptor, [buffer]):
                pass
        os.close(descriptor)

    sides = {"two forwards": forwards, "read": read, "ours": step}
    found = Turns(sides, turns, before=lambda: _evict(state))
    return {
        "ratios": {
            "two forwards": asdict(found.ratio("ours", "two forwards")),
            "read": asdict(found.ratio("ours", "read")),
            "larger": asdict(found.ratio("ours", "two forwards", "read")),
        },
        "milliseconds": found.milliseconds(),
    }


def _together(model: Path, state: Path, replica: Replica, turns: int) -> dict[str, Any]:
    """Time of a direction where several go through the model together, and the memory that they take."""
    batch = _batch(1)
    perturbations = [(seed, (_EPSILON, -_EPSILON)) for seed in range(max(_DIRECTIONS))]
    estimators = {
        count: Estimator(load_base(str(model)).model, replica, lanes_at_once=2 * count) for count in _DIRECTIONS
    }

    def step(count: int) -> list[list[float]]:
        return estimators[count].losses(batch, perturbations[:count])

    alone = [estimators[1].losses(batch, [p])[0] for p in perturbations]
    if any(step(count) != alone[:count] for count in _DIRECTIONS):
        raise RuntimeError("losses of several directions together are not those of one at a time")
    sides = {f"{count} directions": partial(step, count) for count in _DIRECTIONS}
    found = Turns(sides, turns, before=lambda: _evict(state))
    one = f"{_DIRECTIONS[0]} directions"
    ratios = {str(count): asdict(found.ratio(f"{count} directions", one, parts=count)) for count in _DIRECTIONS}
    return {
        "together": ratios,
        "together_milliseconds": found.milliseconds(),
        "together_peak_bytes": _peak_bytes(),
        "scratch_bytes": {str(count): estimator.scratch_bytes for count, estimator in estimators.items()},
    }


def _evict(state: Path) -> None:
    descriptor = os.open(state, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    sys.exit(main())
