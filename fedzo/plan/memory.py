"""Where the planes of a run go, and what it takes there: memory, and the time of a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch

from fedzo.base.manifest import EXPONENT_OF_UNIT, Manifest, TensorSpec
from fedzo.estimate import LANES
from fedzo.estimate.blocks import Blocks
from fedzo.estimate.copied import EXACT_ELEMENTS
from fedzo.noise import Distribution
from fedzo.plan.forward import Forward
from fedzo.plan.machine import Machine
from fedzo.state.compute_copy import CopyFormat
from fedzo.state.replica import Replica
from fedzo.tiers import BUFFER_ELEMENTS, LEAST_BUFFERS
from fedzo.tiers.choice import tier_for

_INTEGER_BYTES = _FLOAT_BYTES = 4
_COPYING = 2
"""Times the largest tensor, in float32, that is at hand while its copy is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a run is to be."""

    state: str = "auto"
    copy_state: str = "auto"
    device_apart: bool = False
    """The device of the forward has a memory of its own, which tier `device` is; else that is the machine's."""
    compute_copy: str = "none"
    dtype_bytes: int = 4
    """Of a weight in the compute type."""
    directions_per_pass: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes of one process, by what they are for."""

    elements: int
    state_tier: str
    copy_tier: str
    """The tier of the compute copy, or `none`."""
    process_bytes: int
    """The interpreter with its libraries."""
    state_bytes: int
    """In memory."""
    copy_bytes: int
    """In memory, its scales included."""
    ring_bytes: int
    """Buffers of what is streamed, and what is held of a block for several directions."""
    scratch_bytes: int
    """Weights of a block for the lanes of one direction."""
    activation_bytes: int
    """Of the lane that runs, and of those that wait."""
    loading_bytes: int
    """The largest tensor, while the base is read or copied; not at the same time as what a step takes."""
    streamed_bytes: int
    """What a pass reads from disk."""
    disk_bytes: int

    device_bytes: int
    """What a GPU would hold of it: what lies on tier `device`, else a block in the form that is streamed, twice, and
    with a copy two buffers of the integers that it is made of; weights of a block, in the compute type; activations."""

    @property
    def peak_bytes(self) -> int:
        """The most that is resident."""
        step = self.scratch_bytes + self.activation_bytes
        resident = self.process_bytes + self.state_bytes + self.copy_bytes + self.ring_bytes
        return resident + max(step, self.loading_bytes)


def process_bytes() -> int:
    """What this process has resident, with what a run imports and the kernels loaded."""
    manifest = Manifest((TensorSpec("nothing", (1,), EXPONENT_OF_UNIT, 0),))
    Replica(manifest, torch.zeros(1, dtype=torch.int32), Distribution.RADEMACHER).weights(0)
    resident: int = psutil.Process().memory_info().rss
    return resident


def plan_memory(
    shapes: Mapping[str, Sequence[int]],
    blocks: Blocks,
    forward: Forward,
    asked: Asked,
    *,
    process_bytes: int,
    free_bytes: float,
) -> MemoryPlan:
    """Decide where things go.

    Args:
        shapes: of every parameter, sorted as in a manifest.
        blocks: what is brought in at once.
        forward: of one lane.
        asked: what the run is to be.
        process_bytes: what the process has taken before the run is loaded.
        free_bytes: memory that the state may be put into; `tier_for` takes a share of it.
    """
    manifest = Manifest(tuple(TensorSpec(name, tuple(s), EXPONENT_OF_UNIT, 0) for name, s in shapes.items()))
    sizes = [spec.size for spec in manifest]
    widest = max((sum(sizes[k] for k in block) for _, block in (*blocks.layers, *blocks.owners)), default=0)
    layer = max((sum(sizes[k] for k in block) for _, block in blocks.layers), default=0)
    exact = _plane(manifest, asked.state, 0 if asked.compute_copy != "none" else layer, asked, free_bytes)
    copied, scales = None, 0
    if asked.compute_copy != "none":
        form = CopyFormat(asked.compute_copy, manifest)
        copied = _plane(form.layout(), asked.copy_state, layer // form.together, asked, free_bytes)
        if asked.compute_copy == "int8":
            scales = _FLOAT_BYTES * sum(spec.shape[0] for k, spec in enumerate(manifest) if form.copied(k))
    read = copied or exact
    held = widest * read.size // max(manifest.elements, 1) if asked.directions_per_pass > 1 and read.on_disk else 0
    waiting = LANES * asked.directions_per_pass - 1
    cast_bytes = asked.dtype_bytes if asked.dtype_bytes < _FLOAT_BYTES else 0
    bring = 2 * widest * read.size // max(manifest.elements, 1)
    if copied:
        bring += 2 * _INTEGER_BYTES * min(EXACT_ELEMENTS, layer)
    on_device = sum(plane.size for plane in (exact, copied) if plane and plane.on_device)
    return MemoryPlan(
        elements=manifest.elements,
        state_tier=exact.tier,
        copy_tier=copied.tier if copied else "none",
        process_bytes=process_bytes,
        state_bytes=exact.resident,
        copy_bytes=scales + (copied.resident if copied else 0),
        ring_bytes=exact.ring + (copied.ring if copied else 0) + held,
        scratch_bytes=LANES * widest * (_FLOAT_BYTES + cast_bytes),
        activation_bytes=forward.activation_bytes + waiting * forward.pause_bytes,
        loading_bytes=_FLOAT_BYTES * max(sizes, default=0) * (_COPYING if copied else 1),
        streamed_bytes=read.size if read.on_disk else 0,
        device_bytes=(on_device or bring)
        + LANES * widest * asked.dtype_bytes
        + forward.activation_bytes
        + waiting * forward.pause_bytes,
        disk_bytes=sum(plane.size for plane in (exact, copied) if plane and plane.on_disk),
    )


@dataclass(frozen=True, slots=True)
class _Plane:
    """Something that a tier holds, in bytes."""

    size: int
    tier: str
    ring: int
    on_device: bool
    """In a memory that is not the machine's."""

    @property
    def on_disk(self) -> bool:
        return self.tier == "disk"

    @property
    def resident(self) -> int:
        return 0 if self.on_disk or self.on_device else self.size


def _plane(layout: Manifest, tier: str, layer: int, asked: Asked, free_bytes: float) -> _Plane:
    """Where so many int32 go, the largest layer of which is read ahead."""
    tier = tier_for(tier, layout, free_bytes)
    buffers = max(LEAST_BUFFERS, -(-layer // BUFFER_ELEMENTS))
    ring = min(buffers * BUFFER_ELEMENTS, layout.elements) if tier == "disk" else 0
    on_device = asked.device_apart and tier == "device"
    return _Plane(_INTEGER_BYTES * layout.elements, tier, _INTEGER_BYTES * ring, on_device)


def step_seconds(plan: MemoryPlan, forward: Forward, machine: Machine, asked: Asked) -> dict[str, float]:
    """What a direction's step takes: its forward passes, making their weights, and reading, which goes on beside them.

    A pass over memory reads four bytes a weight and writes four for each lane.
    """
    compute = LANES * forward.flops / machine.flops_per_s
    making = plan.elements * (_INTEGER_BYTES + LANES * _FLOAT_BYTES) / machine.memory_bytes_per_s
    reading = plan.streamed_bytes / machine.disk_bytes_per_s / asked.directions_per_pass
    return {"forwards": compute, "weights": making, "reading": reading, "step": max(compute + making, reading)}
