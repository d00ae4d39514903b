"""On a machine with CUDA: is what the kernels make what the CPU makes, and does streaming keep up with the forwards?

    python -m benchmarks.gpu [--json FILE] [--directions 1,4,16] [--tokens 2048] [--layers 40] [--turns 3]
                             [--directory DIR]

First equality: digests of integers and weights on the GPU against the CPU's reference, and the losses of a small model
against the CPU's; nothing is timed where one differs. Then the steps of an OPT-13B of random weights, taken as in
`fedzo simulate --device cuda`: by the estimator, over a state in page-locked host memory, or a copy of it in fp16 or
int8; first over a copy in fp16 whose state lies on disk, in --directory, which says what the host holds. A step is held
against the longer of two: the forwards of its lanes with weights that stay on the device (one layer's for all, so that
they fit any), and its bytes at the bandwidth measured from host to device.

`--rehearse` runs the same code on the CPU, on a small shape, for what it computes and not for its time
(TRITON_INTERPRET=1).
"""

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from blake3 import blake3
from rich.console import Console
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from benchmarks.checks import Check
from benchmarks.report import environment, print_check
from benchmarks.timing import Spread, Turns
from fedzo.base.checkpoint import Base, base_digest, raw_bytes, unique_parameters
from fedzo.base.manifest import EXPONENT_OF_UNIT, Manifest, TensorSpec
from fedzo.device import get_device, moved
from fedzo.estimate import LANES, Batch, Estimator, weights_of
from fedzo.noise import COEFFICIENT_BITS, CopyBackend, Distribution, Increments, Segment, Term, get_backend
from fedzo.state.compute_copy import CopyFormat
from fedzo.state.replica import Replica
from fedzo.tiers.choice import peak_bytes, place_of, scratch_place
from fedzo.tiers.device import page_locked

_EPSILON = round(1e-3 * 2**COEFFICIENT_BITS)
_CASES = (("fp16", "disk"), ("none", "host"), ("fp16", "host"), ("int8", "host"))
"""The compute copy, and where the state lies. On disk first: the peak of the host's memory is then its own."""
_RATIO = 1.15
_DEVICE_BYTES = 6.18e9
_HOST_RATIO = 1.1
_ENTRIES = 64
_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_LANES_AT_EPSILON = [[Term(5, 0, _EPSILON)], [Term(5, 0, -_EPSILON)]]


def main() -> int:
    """Exit code 0 where everything is equal, 1 where not, 2 where there is no GPU."""
    arguments = _arguments()
    console = Console(width=120)
    if not (torch.cuda.is_available() or arguments.rehearse):
        console.print("no CUDA device was found: nothing was measured")
        return 2
    device = get_device("cpu" if arguments.rehearse else "cuda")
    checks = [*_kernel_checks(device), _losses_check(device)]
    for check in checks:
        print_check(console, check)
    if not all(check.holds for check in checks):
        return 1
    found: dict[str, Any] = {"environment": environment(torch.get_num_threads()), "device": _named(device)}
    found["checks"] = [check._asdict() for check in checks]
    found["steps"] = []
    for kind, tier in _CASES:
        for step in _steps(kind, tier, device, arguments):
            held = step.held()
            found["steps"].append(asdict(step) | {"held": held})
            console.print(", ".join(f"{name}: {value}" for name, value in asdict(step).items()), soft_wrap=True)
            if not arguments.rehearse:
                verdicts = [f"{what}: {'met' if met else 'MISSED'}" for what, met in held.items()]
                console.print("; ".join(verdicts), soft_wrap=True)
            arguments.json.parent.mkdir(parents=True, exist_ok=True)  # each time: what was measured outlives what fails
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
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="of the state on disk")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU; give a small shape")
    return parser.parse_args()


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU, as a rehearsal"


# ── equality ────────────────────────────────────────────────────────────────────────────────────────


def _kernel_checks(device: torch.device) -> Iterator[Check]:
    """Commit of many entries, and weights in every type, of integers and of copies, against the reference on the CPU.

    Segments that begin anywhere, and such as models have: the kernel then reads several elements at once.
    """
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(-(2**28), 2**28, (26_000,), dtype=torch.int32, generator=generator)
    manifest = Manifest((TensorSpec("a", (64, 256), 29, 0), TensorSpec("b", (40, 224), 20, 0)))
    for lie, segments in {
        "anywhere": [Segment(0, 100, 12_000, 0, 0), Segment(1, 3, 8000, 12_000, 12_000)],
        "aligned": [Segment(0, 96, 12_000, 0, 0), Segment(1, 32, 7968, 12_000, 12_000)],
    }.items():
        for distribution in Distribution:
            entries = [Term(seed, 0, (seed + 1) * 10**8) for seed in range(_ENTRIES)]
            steps = Increments(distribution, manifest.exponents, [entries]).of([0, 1])
            there, here = state.to(device, copy=True), state.clone()
            get_backend("triton").commit(there, segments, steps, 1)
            get_backend("reference").commit(here, segments, steps, 1)
            yield _equal(f"{_ENTRIES} entries, {distribution}, {lie}", there, here)
            steps = Increments(distribution, manifest.exponents, _LANES_AT_EPSILON).of([0, 1])
            exact = torch.empty(2, 20_000)
            get_backend("reference").materialise(state, segments, steps, exact, 1)
            for dtype in _TYPES:
                made = torch.zeros(2, 20_000, dtype=dtype, device=device)
                get_backend("triton").materialise(state.to(device), segments, steps, made, 1)
                end = segments[-1].target + segments[-1].size
                yield _equal(f"{dtype} at ±ε, {distribution}, {lie}", made[:, :end], exact.to(dtype)[:, :end])
    for kind in ("bf16", "fp16", "int8"):
        yield _copies_check(kind, manifest, state[: manifest.elements], device)


def _copies_check(kind: str, manifest: Manifest, state: torch.Tensor, device: torch.device) -> Check:
    """Weights at ±ε of a compute copy, encoded there and here, by the kernels and by numba's."""
    floats = torch.split(state.float() * 2.0**-30, [spec.size for spec in manifest])
    steps = Increments(Distribution.RADEMACHER, manifest.exponents, _LANES_AT_EPSILON).of([0, 1])
    starts = manifest.starts
    segments = [Segment(k, 0, spec.size, starts[k], starts[k]) for k, spec in enumerate(manifest)]
    found = []
    for where, backend in ((device, get_backend("triton")), (torch.device("cpu"), get_backend("numba"))):
        assert isinstance(backend, CopyBackend)
        form = CopyFormat(kind, manifest, where)
        shaped = [part.to(where, copy=True).view(spec.shape) for part, spec in zip(floats, manifest, strict=True)]
        encoded = [form.encode(number, weights) for number, weights in enumerate(shaped)]
        out = torch.empty(2, manifest.elements, device=where)
        copy = torch.cat(encoded).view(form.type)
        backend.materialise_copies(copy, segments, steps, out, 1, form.scales([0, 1]))
        found.append(out)
    return _equal(f"weights of a copy in {kind}", *found)


def _equal(claim: str, there: torch.Tensor, here: torch.Tensor) -> Check:
    digests = [blake3(raw_bytes(tensor.cpu().contiguous())).hexdigest()[:16] for tensor in (there, here)]
    return Check(f"{claim}: the kernels' are the CPU's", digests[0] == digests[1], " and ".join(digests))


def _losses_check(device: torch.device) -> Check:
    """A small model with its state on the device: its losses at ±ε, which are floats, and its digest."""
    torch.manual_seed(0)
    made = OPTForCausalLM(_config(width=64, layers=2)).eval()
    batch, losses, digests = _batch(24), [], []
    for where in (torch.device("cpu"), device):
        model = deepcopy(made)
        place = place_of("device", Path(), where)
        replica = Replica.from_base(Base("", model, base_digest(model)), Distribution.RADEMACHER, place=place)
        estimator = Estimator(model, replica, weights=weights_of(replica, "none", "device", Path(), where))
        losses.append(estimator.losses(batch, [(5, (_EPSILON, -_EPSILON))])[0])
        digests.append(replica.digest().hex()[:16])
    near = all(abs(there - here) < 1e-4 * abs(here) for here, there in zip(*losses, strict=True))
    claim = "losses at ±ε within 1e-4 of the CPU's, and the state's digest the same"
    return Check(claim, near and digests[0] == digests[1], f"{losses[1]} and {losses[0]}")


# ── streaming ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One kind of copy, place of the state, and number of directions."""

    kind: str
    state: str
    """Its tier."""
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
    """Of tensors."""
    device_reserved_bytes: int
    """What torch took of the device for them."""
    copy_bytes: int
    host_peak_bytes: int
    """Of the process until then, all its libraries included."""

    def held(self) -> dict[str, bool]:
        """What is asked of the shape that is the default, and whether it is met."""
        asked = {f"step ≤ {_RATIO} × the longer": self.ratio.median <= _RATIO}
        if self.directions == 1 and self.kind != "none":
            asked[f"device ≤ {_DEVICE_BYTES / 1e9} GB"] = self.device_peak_bytes <= _DEVICE_BYTES
        if (self.kind, self.state) == _CASES[0]:
            asked[f"host ≤ {_HOST_RATIO} × the copy"] = self.host_peak_bytes <= _HOST_RATIO * self.copy_bytes
        return asked


def _config(width: int, layers: int) -> OPTConfig:
    return OPTConfig(
        hidden_size=width,
        word_embed_proj_dim=width,
        ffn_dim=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 128 or 1,
    )


def _batch(tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 1000, (1, tokens), generator=torch.Generator().manual_seed(9))
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def streamed_model(
    config: OPTConfig, device: torch.device, tier: str = "host", directory: Path = Path()
) -> tuple[nn.Module, Replica]:
    """A model without weights, and a replica of random ones in a tier; no float model is ever made."""
    with torch.device("meta"):
        model = OPTForCausalLM(config)
    specs = [TensorSpec(n, tuple(p.shape), EXPONENT_OF_UNIT, 0) for n, p in unique_parameters(model).items()]
    for parameter in list(model.parameters()):
        torch.utils.swap_tensors(parameter, nn.Parameter(torch.empty(0)))  # type: ignore[no-untyped-call]
    store = scratch_place(tier, directory, device)(Manifest(tuple(specs)))
    if device.type == "cpu":
        store.device = torch.device("meta")  # a rehearsal goes through the ring too
    values = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)).mul_(0.02 * 2**EXPONENT_OF_UNIT).int()
    elements = sum(spec.size for spec in specs)
    for start in range(0, elements, len(values)):  # repeated: values do not change the time
        store.write(start, values[: elements - start])
    threads = torch.get_num_threads()
    return model, Replica(Manifest(tuple(specs)), store, Distribution.RADEMACHER, threads=threads)


def _resident_model(config: OPTConfig, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """As many layers, which share the first one's weights."""
    layers, config.num_hidden_layers = config.num_hidden_layers, 1
    with device:
        model = OPTForCausalLM(config).to(dtype).eval()
    config.num_hidden_layers = layers
    decoder: Any = model.get_decoder()
    decoder.layers = nn.ModuleList(list(decoder.layers) * layers)
    return model  # type: ignore[no-any-return]


def _pass_bytes(manifest: Manifest, kind: str) -> int:
    """Of a pass: everything once, and the table, which is the head's weight too, once more."""
    read = manifest if kind == "none" else CopyFormat(kind, manifest).layout()
    return 4 * (read.elements + max(spec.size for spec in read if spec.name == "lm_head.weight"))


def _steps(kind: str, tier: str, device: torch.device, arguments: argparse.Namespace) -> Iterator[Step]:
    config, batch = _config(arguments.width, arguments.layers), _batch(arguments.tokens)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    _reset_peak(device)
    model, replica = streamed_model(config, device, tier, arguments.directory)
    estimator = Estimator(model, replica, dtype=dtype, weights=weights_of(replica, kind, "host", Path(), device))
    copied = 0 if kind == "none" else 4 * CopyFormat(kind, replica.manifest).layout().elements
    size = _pass_bytes(replica.manifest, kind)
    for directions in map(int, arguments.directions.split(",")):
        estimator.lanes_at_once = LANES * directions
        evaluations = [(seed, (_EPSILON, -_EPSILON)) for seed in range(directions)]
        _reset_peak(device)
        together = estimator.losses(batch, evaluations)
        peak, reserved, host = _device_peak(device), _device_reserved(device), peak_bytes()
        if [estimator.losses(batch, [each])[0] for each in evaluations] != together:
            raise RuntimeError(f"{directions} directions together are not those of one at a time")
        step = partial(estimator.losses, batch, evaluations)
        resident = _resident_model(config, device, dtype)
        forwards = partial(_forwards, resident, moved(batch, device), LANES * directions)
        turns = _beside(step, forwards, size, device, arguments.turns)
        del resident, forwards  # it is no part of the next one's memory
        times = {name: time / 1000 for name, time in turns.milliseconds().items()}
        yield Step(
            kind=kind,
            state=tier,
            directions=directions,
            step_s=times["step"],
            forwards_s=times["forwards"],
            transfer_s=times["transfer"],
            ratio=turns.ratio("step", "forwards", "transfer"),
            bytes_per_s=size / times["transfer"],
            device_peak_bytes=peak,
            device_reserved_bytes=reserved,
            copy_bytes=copied,
            host_peak_bytes=host,
        )


def _beside(
    step: Callable[[], object], forwards: Callable[[], object], size: int, device: torch.device, turns: int
) -> Turns:
    """Take a step, as many forwards and a transfer of so many bytes by turns."""
    block = page_locked(1 << 24) if device.type == "cuda" else torch.empty(1 << 24, dtype=torch.int32)
    works = {"step": step, "forwards": forwards, "transfer": partial(_transfer, block, size, device)}
    return Turns({name: partial(_done, work, device) for name, work in works.items()}, turns)


@torch.inference_mode()
def _forwards(model: nn.Module, batch: Batch, times: int) -> None:
    for _ in range(times):
        model(**batch)


def _transfer(block: torch.Tensor, size: int, device: torch.device) -> None:
    """So many bytes, from memory that is page-locked where the device is a GPU."""
    there = torch.empty_like(block, device=device)
    for start in range(0, size, block.nbytes):
        part = slice(0, min(size - start, block.nbytes) // 4)
        there[part].copy_(block[part], non_blocking=True)


def _done(work: Callable[[], object], device: torch.device) -> float:
    """When the device had done it."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _reset_peak(device: torch.device) -> None:
    gc.collect()  # a model and its hooks refer to each other: what an earlier case held goes here
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _device_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _device_reserved(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0


if __name__ == "__main__":
    sys.exit(main())
