"""The memory of a simulation: what was planned, and what it was."""

import torch

from fedzo.base.checkpoint_files import stored_bytes
from fedzo.device import get_device
from fedzo.estimate.estimator import LANES, largest_layer
from fedzo.plan.forward import outline
from fedzo.plan.memory import Asked, MemoryPlan, plan_memory, process_bytes
from fedzo.tasks import get_task
from fedzo.tiers.choice import free_bytes, peak_bytes

from .options import SimulateOptions

_WORTH_BYTES = 1 << 25
"""Of a smaller checkpoint nearly all that a run takes is the interpreter, and a plan is not worth its second."""


def plan_run(options: SimulateOptions) -> MemoryPlan | None:
    """What a run will take, before anything of it is loaded; None where that says little, or its work is elsewhere.

    Raises:
        CheckpointError: its model cannot be loaded.
    """
    if (
        options.engine != "inline"
        or get_device(options.device).type != "cpu"
        or get_task(options.definition().task).head
        or stored_bytes(options.model) < _WORTH_BYTES
    ):
        return None
    most = largest_layer(get_device(options.device), LANES * options.directions_per_pass)
    found = outline(options.model, options.batch_size, options.max_length, most)
    asked = Asked(
        state=options.state,
        copy_state=options.copy_tier(options.state),
        compute_copy=options.compute_copy,
        dtype_bytes=getattr(torch, options.dtype).itemsize,
        directions_per_pass=min(options.directions_per_pass, options.chosen("directions")),
    )
    taken, free = process_bytes(), free_bytes()
    return plan_memory(found.shapes, found.blocks, found.forward, asked, process_bytes=taken, free_bytes=free)


def said_of(plan: MemoryPlan) -> str:
    """For people: the tiers, and what was planned."""
    copied = "" if plan.copy_tier == "none" else f", its copy on tier {plan.copy_tier}"
    return f"state on tier {plan.state_tier}{copied}: memory planned {plan.peak_bytes / 1e6:,.0f} MB"


def said_of_peak(plan: MemoryPlan) -> str:
    """The same, and the most that this process has had resident."""
    return f"{said_of(plan)}, measured {peak_bytes() / 1e6:,.0f} MB"
