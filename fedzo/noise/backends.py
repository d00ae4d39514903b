"""Backends add increments to integers. All give the same bits; they differ in where and how fast.

    reference  numpy, plain, what the others are tested against
    numba      CPU kernels, several threads; the default where numba is installed
    torch      plain torch operations, on any device torch has
    triton     GPU kernels; on CPU tensors only in Triton's interpreter (TRITON_INTERPRET=1), slowly, for tests

`auto` is, of what is installed, numba or else torch for tensors on the CPU, triton or else torch for those on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from fedzo.errors import ConfigError
from fedzo.noise.increments import Segment, StepTables

if TYPE_CHECKING:
    import torch

BACKENDS = ("reference", "numba", "torch", "triton")


class NoiseBackend(Protocol):
    """What a backend offers: both take whole lists of segments, so that a layer costs one call."""

    name: str

    def commit(self, state: torch.Tensor, segments: Sequence[Segment], steps: StepTables, threads: int) -> None:
        """Add the increments of lane 0 to the segments of `state`, flat int32, in place, modulo 2³²."""

    def materialise(
        self,
        state: torch.Tensor,
        segments: Sequence[Segment],
        steps: StepTables,
        out: torch.Tensor,
        threads: int,
    ) -> None:
        """Write float32(state + increments) · 2^−exponent of the segments for each lane into `out`.

        Args:
            state: flat int32; read only.
            segments: what to materialise.
            steps: what to add.
            out: float32[lanes, ≥ every segment's end], rows contiguous.
            threads: CPU threads to use at most.
        """


class Scales(NamedTuple):
    """Of a copy in int8: each row's scale, tensor after tensor."""

    values: torch.Tensor
    """float32, flat."""
    starts: list[int]
    """Where those of each tensor of the step tables begin."""
    widths: list[int]
    """Elements of a row of each of these tensors."""


@runtime_checkable
class CopyBackend(Protocol):
    """A backend that makes weights from a compute copy in one go (docs/numerics.md, "Compute copies")."""

    casts: bool
    """Outputs, those of `materialise` too, may be float16 or bfloat16: each weight is cast, nearest-even."""

    def materialise_copies(
        self,
        copy: torch.Tensor,
        segments: Sequence[Segment],
        steps: StepTables,
        out: torch.Tensor,
        threads: int,
        scales: Scales | None = None,
    ) -> None:
        """Write copy + increments · 2^−exponent of the segments for each lane into `out`.

        Args:
            copy: flat, float16, bfloat16 or int8; read only.
            segments: what to materialise; sources count elements of `copy`.
            steps: what to add.
            out: float32[lanes, ≥ every segment's end], rows contiguous; see `casts`.
            threads: CPU threads to use at most.
            scales: of a copy in int8.
        """


class _ByPlace:
    """`auto`: see above. Its name is that of the backend for the CPU."""

    def __init__(self) -> None:
        self._here = get_backend("numba" if find_spec("numba") else "torch")
        self._there: NoiseBackend | None = None
        self.name = self._here.name

    def at(self, device: torch.device) -> NoiseBackend:
        if device.type == "cpu":
            return self._here
        if self._there is None:
            self._there = get_backend("triton" if find_spec("triton") else "torch")
        return self._there

    def commit(self, state: torch.Tensor, segments: Sequence[Segment], steps: StepTables, threads: int) -> None:
        self.at(state.device).commit(state, segments, steps, threads)

    def materialise(
        self,
        state: torch.Tensor,
        segments: Sequence[Segment],
        steps: StepTables,
        out: torch.Tensor,
        threads: int,
    ) -> None:
        self.at(state.device).materialise(state, segments, steps, out, threads)


def backend_at(backend: NoiseBackend, device: torch.device) -> NoiseBackend:
    """Who adds the noise to tensors on a device."""
    return backend.at(device) if isinstance(backend, _ByPlace) else backend


def get_backend(name: str = "auto") -> NoiseBackend:
    """The backend of that name.

    Raises:
        ConfigError: the name is unknown, or this machine lacks what the backend needs.
    """
    if name == "auto":
        return _ByPlace()
    if name not in BACKENDS:
        raise ConfigError(f"noise backend {name!r} is unknown; choose auto or one of {', '.join(BACKENDS)}")
    if name in ("numba", "triton") and not find_spec(name):
        raise ConfigError(f"noise backend {name!r} needs the package {name}, which is not installed; use 'auto'")
    module = import_module(f"fedzo.noise.{name}_backend")
    if name == "triton":
        module.require_gpu_or_interpreter()
    backend: NoiseBackend = module.BACKEND
    return backend
