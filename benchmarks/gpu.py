"""On a machine with CUDA: is what the kernels make what the CPU makes, and does streaming keep up with the forwards?

    python -m benchmarks.gpu [--json FILE] [--directions 1,4,16] [--tokens 2048] [--layers 40] [--turns 3]

First the kernels: digests of integers and weights on the GPU against the CPU's reference; nothing is timed where one
differs. Then the decoder layers of an OPT-13B, of random weights, from compute copies in pinned host memory, fp16 and
int8, through a ring of two blocks: each block is brought to the device once, its weights made for +ε and −ε of one
direction after the other, and every lane run through it. A step is held against the longer of two: the forwards of its
lanes with weights that stay on the device, and its bytes at the bandwidth measured from host to device.

`--rehearse` runs the same code on the CPU, on a small shape, for what it computes and not for its time
(TRITON_INTERPRET=1). What is not here: embeddings and the head, and the lockstep over a whole model, which does not run
on a GPU yet.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import torch
from blake3 import blake3
from fedzo.noise.triton_copies import Scales, materialise_copies
from rich.console import Console
from torch import nn
from torch.func import functional_call
from transformers import OPTConfig
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from benchmarks.checks import Check
from benchmarks.report import environment, print_check
from benchmarks.timing import Spread, Turns
from fedzo.checkpoint import raw_bytes
from fedzo.compute_copy import CopyFormat
from fedzo.manifest import EXPONENT_OF_UNIT, Manifest, TensorSpec
from fedzo.noise import COEFFICIENT_BITS, Distribution, Increments, Segment, Term, get_backend
from fedzo.tiers.device import DeviceRing, pinned

_EPSILON = round(1e-3 * 2**COEFFICIENT_BITS)
_KINDS = {"fp16": torch.float16, "int8": torch.int8}
_ENTRIES = 64


def main() -> int:
    """Exit code 0 where everything is equal, 1 where not, 2 where there is no GPU."""
    arguments = _arguments()
    console = Console(width=120)
    if not (torch.cuda.is_available() or arguments.rehearse):
        console.print("no CUDA device was found: nothing was measured")
        return 2
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    checks = list(_kernel_checks(device))
    for check in checks:
        print_check(console, check)
    if not all(check.holds for check in checks):
        return 1
    found: dict[str, Any] = {"environment": environment(torch.get_num_threads()), "device": _named(device)}
    found["checks"] = [check._asdict() for check in checks]
    found["steps"] = [asdict(step) for kind in _KINDS for step in _steps(kind, device, arguments)]
    for step in found["steps"]:
        console.print(", ".join(f"{name}: {value}" for name, value in step.items()), soft_wrap=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--directions", default="1,4,16", help="directions that go through the layers together")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU; give a small shape")
    return parser.parse_args()


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU, as a rehearsal"


# ── equality ────────────────────────────────────────────────────────────────────────────────────────


def _kernel_checks(device: torch.device) -> Iterator[Check]:
    """Commit of many entries, and weights in every type, against the reference on the CPU."""
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(-(2**28), 2**28, (20_000,), dtype=torch.int32, generator=generator)
    segments = [Segment(0, 100, 12_000, 0, 0), Segment(1, 3, 8000, 12_000, 12_000)]
    exponents = Manifest((TensorSpec("a", (1,), 29, 0), TensorSpec("b", (1,), 20, 0))).exponents
    for distribution in Distribution:
        entries = [Term(seed, 0, (seed + 1) * 10**8) for seed in range(_ENTRIES)]
        steps = Increments(distribution, exponents, [entries]).of([0, 1])
        there, here = state.to(device, copy=True), state.clone()
        get_backend("triton").commit(there, segments, steps, 1)
        get_backend("reference").commit(here, segments, steps, 1)
        yield _equal(f"{_ENTRIES} entries, {distribution}", there, here)
        steps = Increments(distribution, exponents, [[Term(5, 0, _EPSILON)], [Term(5, 0, -_EPSILON)]]).of([0, 1])
        exact = torch.empty(2, state.numel())
        get_backend("reference").materialise(state, segments, steps, exact, 1)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            made = torch.empty(2, state.numel(), dtype=dtype, device=device)
            get_backend("triton").materialise(state.to(device), segments, steps, made, 1)
            yield _equal(f"weights at ±ε in {dtype}, {distribution}", made, exact.to(dtype))


def _equal(claim: str, there: torch.Tensor, here: torch.Tensor) -> Check:
    digests = [blake3(raw_bytes(tensor.cpu().contiguous())).hexdigest()[:16] for tensor in (there, here)]
    return Check(f"{claim}: the kernels' are the CPU's", digests[0] == digests[1], " and ".join(digests))


# ── streaming ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One kind of copy and number of directions."""

    kind: str
    directions: int
    step_s: float
    forwards_s: float
    """All lanes' forwards with weights that stay on the device."""
    transfer_s: float
    """The bytes of a pass at the bandwidth measured."""
    ratio: Spread
    """The step's time over the longer of those two."""
    bytes_per_s: float
    device_peak_bytes: int
    host_bytes: int


class _Layers:
    """The decoder layers: one module, which computes with whatever weights it is given, and a copy for each layer."""

    def __init__(self, kind: str, device: torch.device, width: int, layers: int, tokens: int) -> None:
        config = OPTConfig(
            hidden_size=width, ffn_dim=4 * width, num_attention_heads=width // 128 or 1, _attn_implementation="sdpa"
        )
        self.device = device
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        with torch.device("meta"):
            self._module: nn.Module = OPTDecoderLayer(config, layer_idx=0).eval()
        shapes = {name: tuple(p.shape) for name, p in sorted(self._module.named_parameters())}
        self._manifest = Manifest(tuple(TensorSpec(n, s, EXPONENT_OF_UNIT, 0) for n, s in shapes.items()))
        self._format = CopyFormat(kind, self._manifest)
        self._type = _KINDS[kind]
        self._large = [k for k in range(len(self._manifest)) if self._format.copied(k)]
        self._sizes = [self._manifest.tensors[k].size for k in self._large]
        self._starts = [sum(self._sizes[:n]) for n in range(len(self._sizes))]
        self.blocks, self._scales = [], []
        for layer in range(layers):
            block, scales = self._random_block(layer)
            self.blocks.append(block)
            self._scales.append(scales)
        self.hidden = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(9)).to(device, self.dtype)
        self._out = torch.empty(2, sum(self._sizes), dtype=self.dtype, device=device)
        self._small = {
            spec.name: (torch.ones if spec.name.endswith("norm.weight") else torch.zeros)(
                spec.shape, dtype=self.dtype, device=device
            )
            for k, spec in enumerate(self._manifest)
            if k not in self._large
        }

    def _random_block(self, layer: int) -> tuple[torch.Tensor, Scales | None]:
        generator = torch.Generator().manual_seed(layer)
        parts, scales = [], []
        for k in self._large:
            shape = self._manifest.tensors[k].shape
            parts.append(self._format.encode(k, torch.randn(shape, generator=generator).mul_(0.02)))
            if self._format.kind == "int8":
                scales.append(self._format.scales(k))
        block = pinned(parts, self.device)
        if not scales:
            return block, None
        rows = [len(part) for part in scales]
        widths = [size // count for size, count in zip(self._sizes, rows, strict=True)]
        values = torch.cat(scales).to(self.device)
        return block, Scales(values, [sum(rows[:n]) for n in range(len(rows))], widths)

    def make(self, layer: int, buffer: torch.Tensor, increments: Increments) -> list[dict[str, torch.Tensor]]:
        """The weights of both lanes of a direction, from a block on the device."""
        copy = buffer[: self.blocks[layer].numel()].view(self._type)
        segments = [
            Segment(row, 0, size, start, start)
            for row, (size, start) in enumerate(zip(self._sizes, self._starts, strict=True))
        ]
        materialise_copies(copy, segments, increments.of(self._large), self._out, self._scales[layer])
        return [self._named(row) for row in self._out]

    def _named(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = zip(self._large, flat.split(self._sizes), strict=True)
        specs = self._manifest.tensors
        return self._small | {specs[k].name: part.view(specs[k].shape) for k, part in parts}

    def run(self, weights: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """One lane through one layer."""
        found = functional_call(self._module, weights, (hidden,))
        return found[0] if isinstance(found, tuple) else found

    def increments(self, directions: int) -> list[Increments]:
        """+ε and −ε of each direction."""
        return [
            Increments(
                Distribution.RADEMACHER,
                self._manifest.exponents,
                [[Term(seed, 0, _EPSILON)], [Term(seed, 0, -_EPSILON)]],
            )
            for seed in range(directions)
        ]


def _step(layers: _Layers, ring: DeviceRing, increments: Sequence[Increments]) -> torch.Tensor:
    """All lanes through all layers, each block brought in once; the host waits for nothing."""
    lanes = [[layers.hidden, layers.hidden] for _ in increments]
    sent = 0
    for number in range(len(layers.blocks)):
        ring.give_back()
        while sent < len(layers.blocks) and ring.room:
            ring.send(layers.blocks[sent])
            sent += 1
        buffer = ring.use()
        for direction, steps in enumerate(increments):
            made = layers.make(number, buffer, steps)
            lanes[direction] = [layers.run(w, h) for w, h in zip(made, lanes[direction], strict=True)]
    ring.give_back()
    return torch.stack([torch.stack(pair) for pair in lanes])


def _resident(layers: _Layers, weights: Sequence[dict[str, torch.Tensor]], directions: int) -> None:
    for _ in range(2 * directions):
        hidden = layers.hidden
        for each in weights:
            hidden = layers.run(each, hidden)


def _steps(kind: str, device: torch.device, arguments: argparse.Namespace) -> Iterator[Step]:
    layers = _Layers(kind, device, arguments.width, arguments.layers, arguments.tokens)
    largest = max(block.numel() for block in layers.blocks)
    size = sum(block.numel() for block in layers.blocks)
    with torch.inference_mode():
        for directions in map(int, arguments.directions.split(",")):
            ring, increments = DeviceRing(device, largest), layers.increments(directions)
            _reset_peak(device)
            together = _step(layers, ring, increments)
            peak = _device_peak(device)
            alone = torch.cat([_step(layers, ring, increments[k : k + 1]) for k in range(directions)])
            if not torch.equal(together, alone):
                raise RuntimeError(f"{directions} directions together are not those of one at a time")
            # The same weights for every layer: their values do not change the time, and one layer fits any device.
            resident = [layers.make(0, layers.blocks[0].to(device), increments[0])[0]] * len(layers.blocks)
            sides = {
                "step": lambda ring=ring, i=increments: (_step(layers, ring, i), _wait(device)),
                "forwards": lambda w=resident, n=directions: (_resident(layers, w, n), _wait(device)),
                "transfer": lambda ring=ring: (_transfer(layers, ring), _wait(device)),
            }
            turns = Turns(sides, arguments.turns)
            times = {name: time / 1000 for name, time in turns.milliseconds().items()}
            yield Step(
                kind=kind,
                directions=directions,
                step_s=times["step"],
                forwards_s=times["forwards"],
                transfer_s=times["transfer"],
                ratio=turns.ratio("step", "forwards", "transfer"),
                bytes_per_s=size / times["transfer"],
                device_peak_bytes=peak,
                host_bytes=psutil.Process().memory_info().rss,
            )


def _transfer(layers: _Layers, ring: DeviceRing) -> None:
    for block in layers.blocks:
        ring.give_back()
        ring.send(block)
        ring.use()
    ring.give_back()


def _wait(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _device_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


if __name__ == "__main__":
    sys.exit(main())
