"""From float weights to the fixed-point state (docs/numerics.md, "State"), a part of a tensor at a time."""

from collections.abc import Iterator
from math import isfinite

import numpy as np
import torch

from fedzo.base.checkpoint import unique_parameters
from fedzo.base.manifest import MAX_MAGNITUDE, Manifest, TensorSpec, exponent_for
from fedzo.base.paging import release
from fedzo.errors import CheckpointError

_CHUNK = 1 << 17
"""Elements worked on at a time: a buffer that stays in cache and is used again."""


def describe_model(model: torch.nn.Module) -> Manifest:
    """The manifest of a model's parameters.

    Raises:
        CheckpointError: a weight cannot be represented; names it.
    """
    specs = []
    for name, parameter in unique_parameters(model).items():
        specs.append(describe_tensor(name, parameter))
        release(parameter)
    return Manifest(tuple(specs))


def describe_tensor(name: str, weight: torch.Tensor) -> TensorSpec:
    """Shape, exponent and largest magnitude of a weight (docs/numerics.md, "State").

    Raises:
        CheckpointError: non-finite values, a complex or integer type, or max|w| > 2²⁰; names the tensor.
    """
    if not weight.dtype.is_floating_point:
        raise CheckpointError(f"parameter {name!r} has type {weight.dtype}; only real float parameters can be trained")
    largest = _largest_magnitude(name, weight.detach().reshape(-1))
    exponent = exponent_for(largest)
    max_abs = int(np.rint(largest * 2.0**exponent))
    return TensorSpec(name=name, shape=tuple(weight.shape), exponent=exponent, max_abs=max_abs)


def quantised(weight: torch.Tensor, exponent: int) -> Iterator[torch.Tensor]:
    """Θ⁰ = round-half-even(w · 2ᵉ), computed in float64: int32 parts of the flat tensor, in order.

    A part is the caller's until the next is asked for.
    """
    integers = torch.empty(min(weight.numel(), _CHUNK), dtype=torch.int32)
    for _, part in _in_float64(weight.detach().reshape(-1)):
        yield integers[: part.numel()].copy_(part.mul_(2.0**exponent).round_())


def _largest_magnitude(name: str, flat: torch.Tensor) -> float:
    largest = 0.0
    for low, part in _in_float64(flat):
        found = float(part.abs_().max())
        if not isfinite(found):
            where = low + int((~torch.isfinite(part)).nonzero()[0])
            raise CheckpointError(
                f"parameter {name!r} holds {float(flat[where])} at flat index {where}; "
                "every weight must be finite: repair the checkpoint"
            )
        largest = max(largest, found)
    if largest > MAX_MAGNITUDE:
        raise CheckpointError(f"parameter {name!r} has max|w| = {largest:g}; the fixed-point state holds at most 2^20")
    return largest


def _in_float64(flat: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Where each part of a tensor begins, and the part, in a buffer that may be changed and is used again."""
    buffer = torch.empty(min(flat.numel(), _CHUNK), dtype=torch.float64)
    for low in range(0, flat.numel(), _CHUNK):
        part = flat[low : low + _CHUNK]
        yield low, buffer[: part.numel()].copy_(part)
