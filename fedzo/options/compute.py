"""What a machine computes with: it decides on speed and memory, and the compute type on the last bits of a loss."""

from dataclasses import dataclass
from typing import Annotated

from fedzo.device import get_device
from fedzo.noise import get_backend
from fedzo.options.checks import require_choice, require_range
from fedzo.tiers import COPIES, SAME, TIERS, copy_tier

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """What clients compute with, on machines of their own or all on one."""

    dtype: Annotated[str, "Compute type of the forward: float32, bfloat16 or float16. The state is exact in all."] = (
        "float32"
    )
    compute_copy: Annotated[
        str,
        "What forward passes read: none (the state itself), or a copy of it in bf16, fp16 or int8.",
    ] = "none"
    copy_state: Annotated[
        str, "Where that copy lies, as --state says of the state itself: same (as --state), auto, device, host or disk."
    ] = SAME
    directions_per_pass: Annotated[
        int,
        "Directions that go through the model together; what is streamed is read once for all of them.",
    ] = 1
    device: Annotated[
        str, "Where forward passes run: cpu, cuda, cuda:N, or auto: a GPU where there is one (docs/concepts/memory.md)."
    ] = "cpu"
    threads: Annotated[int, "CPU threads; 0 takes all cores."] = 0
    backend: Annotated[
        str, "Who makes the noise: auto, numba, torch, triton (interpreted, slow) or reference. The bits are the same."
    ] = "auto"

    def copy_tier(self, state: str) -> str:
        """What a copy's tier is asked to be, where that of the state is so."""
        return copy_tier(self.copy_state, state)

    def check_compute(self) -> None:
        """Raises ConfigError, naming the option."""
        require_choice("dtype", self.dtype, DTYPES)
        require_choice("compute-copy", self.compute_copy, COPIES)
        require_choice("copy-state", self.copy_state, (SAME, *TIERS))
        require_range("directions-per-pass", self.directions_per_pass, 1, 2**16)
        require_range("threads", self.threads, 0, 2**16)
        get_backend(self.backend)
        get_device(self.device, self.backend)
