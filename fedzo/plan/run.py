"""What one process of a run will take, said before it is loaded and held against what it took."""

import torch

from fedzo.base.checkpoint_files import stored_bytes
from fedzo.device import get_device
from fedzo.errors import CheckpointError
from fedzo.estimate.estimator import LANES, largest_layer
from fedzo.options.compute import ComputeOptions
from fedzo.plan.forward import outline
from fedzo.plan.memory import Asked, MemoryPlan, plan_memory, process_bytes
from fedzo.tiers.choice import free_bytes, peak_bytes

_WORTH_BYTES = 1 << 25
"""Of a smaller checkpoint nearly all that a run takes is the interpreter, and a plan is not worth its second."""


class Planned:
    """A plan, or why there is none.

    Args:
        model: checkpoint directory or hub name.
        options: what it is computed with.
        state: the tier of the state.
        batch_size, max_length: of a batch, in examples and tokens.
        directions: that a client evaluates at most.
        here: the model is computed with in this process, and its config says all of it, as of one with a head it does
            not; else nothing is planned.
    """

    def __init__(
        self,
        model: str,
        options: ComputeOptions,
        *,
        state: str,
        batch_size: int,
        max_length: int,
        directions: int,
        here: bool,
    ) -> None:
        self._plan: MemoryPlan | None = None
        self._why_none = ""
        device = get_device(options.device)
        if not here or device.type != "cpu" or stored_bytes(model) < _WORTH_BYTES:
            return
        try:
            most = largest_layer(device, LANES * options.directions_per_pass)
            found = outline(model, batch_size, max_length, most)
        except CheckpointError as error:  # one that cannot be loaded either is an error when it is
            self._why_none = f"memory is not planned: {error}"
            return
        asked = Asked(
            state=state,
            copy_state=options.copy_tier(state),
            compute_copy=options.compute_copy,
            dtype_bytes=getattr(torch, options.dtype).itemsize,
            directions_per_pass=min(options.directions_per_pass, directions),
        )
        taken, free = process_bytes(), free_bytes()
        self._plan = plan_memory(found.shapes, found.blocks, found.forward, asked, process_bytes=taken, free_bytes=free)

    def before(self) -> list[str]:
        """For people: the tiers, and what was planned; no line where that would say little."""
        if self._plan is None:
            return [self._why_none] if self._why_none else []
        copied = "" if self._plan.copy_tier == "none" else f", its copy on tier {self._plan.copy_tier}"
        planned = f"memory planned {self._plan.peak_bytes / 1e6:,.0f} MB"
        return [f"state on tier {self._plan.state_tier}{copied}: {planned}"]

    def after(self) -> list[str]:
        """The same, and the most that this process has had resident."""
        return [f"{line}, measured {peak_bytes() / 1e6:,.0f} MB" for line in self.before() if self._plan]
