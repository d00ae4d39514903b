"""A copy of the weights in fewer bits, for forward passes alone (docs/numerics.md, "Compute copies").

Two bytes an element (bf16, fp16), or one and a float32 scale for each row (int8). A row is what one index of the first
dimension selects. Tensors of rank 0 and 1 have no copy, nor has one whose rows do not fill whole integers of 32 bits:
what tiers hold and stream is int32, and so is a copy to them.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch

from fedzo.base.manifest import EXPONENT_OF_UNIT, Manifest, TensorSpec
from fedzo.noise import Scales

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
_LARGEST_LEVEL = 127
_LARGEST_HALF = 65504.0


class CopyFormat:
    """How a manifest's tensors are copied.

    Args:
        kind: one of `fedzo.tiers.COPIES`, not `none`.
        manifest: the tensors.
        device: where scales are kept.
    """

    def __init__(self, kind: str, manifest: Manifest, device: torch.device | None = None) -> None:
        self.type = _TYPES[kind]
        self._specs = manifest.tensors
        self.together = 4 // self.type.itemsize
        """Elements in an int32."""
        self._scaled = self.type is torch.int8
        rows = [spec.shape[0] if self._scaled and self.copied(k) else 0 for k, spec in enumerate(manifest)]
        ends = list(accumulate(rows))
        self._scales = torch.empty(sum(rows), device=device)
        self._places = [slice(end - count, end) for end, count in zip(ends, rows, strict=True)]

    def copied(self, tensor: int) -> bool:
        """Has it a copy?"""
        shape = self._specs[tensor].shape
        return len(shape) >= 2 and prod(shape) > 0 and prod(shape[1:]) % self.together == 0

    def layout(self) -> Manifest:
        """What a tier is told to hold: each tensor's int32, none for those without a copy."""
        return Manifest(
            tuple(
                TensorSpec(spec.name, (spec.size // self.together if self.copied(k) else 0,), EXPONENT_OF_UNIT, 0)
                for k, spec in enumerate(self._specs)
            )
        )

    def encode(self, tensor: int, weights: torch.Tensor) -> torch.Tensor:
        """int32, flat: the copy of float32 weights in the tensor's shape, and its scales are kept here.

        Args:
            tensor: with a copy.
            weights: overwritten.
        """
        if self._scaled:
            rows = weights.reshape(weights.shape[0], -1)
            scales = self._scales[self._places[tensor]]
            largest = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1)).abs_()
            # where it divides by a number of the host, a GPU multiplies by its inverse
            levels = torch.full((), float(_LARGEST_LEVEL), device=rows.device)
            scales.copy_(largest.div_(levels))
            divisors = torch.where(scales > 0, scales, 1.0)
            rows.div_(divisors[:, None]).round_().clamp_(-_LARGEST_LEVEL, _LARGEST_LEVEL)
        elif self.type is torch.float16:
            weights.clamp_(-_LARGEST_HALF, _LARGEST_HALF)
        return weights.to(self.type).reshape(-1).view(torch.int32)

    def scales(self, tensors: Sequence[int]) -> Scales | None:
        """Of tensors that were encoded in int8; None for other kinds."""
        if not self._scaled:
            return None
        starts = [self._places[tensor].start for tensor in tensors]
        return Scales(self._scales, starts, [self._width(tensor) for tensor in tensors])

    def decode(self, tensor: int, integers: torch.Tensor, start: int) -> torch.Tensor:
        """float32, flat: what a run of a tensor's copy says its weights are.

        Args:
            tensor: with a copy.
            integers: int32, flat.
            start: the first element.
        """
        found = integers.view(self.type).to(torch.float32)
        if self._scaled:
            width = self._width(tensor)
            first, stop = start // width, -(-(start + found.numel()) // width)
            scales = self._scales[self._places[tensor]][first:stop].repeat_interleave(width)
            found.mul_(scales[start - first * width :][: found.numel()])
        return found

    def _width(self, tensor: int) -> int:
        """Elements of a row."""
        return self._specs[tensor].size // self._specs[tensor].shape[0]
