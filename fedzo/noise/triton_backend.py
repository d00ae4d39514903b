"""The GPU's backend: launches of the kernel of `fedzo.noise.triton_kernels`."""

from collections.abc import Sequence

import torch

from fedzo.errors import ConfigError
from fedzo.noise.backends import Scales
from fedzo.noise.increments import Segment, StepTables
from fedzo.noise.triton_kernels import INTERPRETED, launch


def require_gpu_or_interpreter() -> None:
    """Raises ConfigError where the kernels cannot run: there is no GPU and they are not interpreted."""
    if not (torch.cuda.is_available() or INTERPRETED):
        raise ConfigError(
            "noise backend 'triton' needs a CUDA device and torch sees none; use 'auto', or set TRITON_INTERPRET=1 to "
            "run its kernels slowly on the CPU"
        )


class TritonBackend:
    """See `NoiseBackend` and `CopyBackend`.

    Works where the tensors lie: on a CUDA device, or anywhere in Triton's interpreter.
    """

    name = "triton"
    casts = True

    def commit(self, state: torch.Tensor, segments: Sequence[Segment], steps: StepTables, threads: int) -> None:
        """See `NoiseBackend.commit`; threads are not used."""
        in_place = [segment._replace(target=segment.source) for segment in segments]
        launch(state, in_place, steps, state[None], 1)

    def materialise(
        self,
        state: torch.Tensor,
        segments: Sequence[Segment],
        steps: StepTables,
        out: torch.Tensor,
        threads: int,
    ) -> None:
        """See `NoiseBackend.materialise`; threads are not used."""
        launch(state, segments, steps, out, out.shape[0])

    def materialise_copies(
        self,
        copy: torch.Tensor,
        segments: Sequence[Segment],
        steps: StepTables,
        out: torch.Tensor,
        threads: int,
        scales: Scales | None = None,
    ) -> None:
        """See `CopyBackend.materialise_copies`; threads are not used."""
        launch(copy, segments, steps, out, out.shape[0], scales)


BACKEND = TritonBackend()
