"""Weights of tensors that a checkpoint lacks, such as a new classification head (docs/numerics.md, "Initial weights").

They come from the run's seed by the noise generator and never from the framework's, so that every replica of a run
starts from the same bits.
"""

import numpy as np
import torch

from fedzo.noise.directions import GAUSSIAN_TABLE, Distribution, block_symbols

TAG_INITIAL = 9
STANDARD_DEVIATION = 0.02
"""BERT's, GPT-2's and most others' `initializer_range`."""
_CHUNK = 1 << 20


def initialise(
    weight: torch.Tensor, name: str, tensor: int, run_seed: int, deviation: float = STANDARD_DEVIATION
) -> None:
    """Fill a weight in place: a bias with 0, another tensor of rank 0 or 1 (a norm's scale) with 1, others normally.

    Args:
        weight: any float type; the float32 value is cast to it, nearest-even.
        name: of the parameter.
        tensor: its index in the manifest.
        run_seed: of the genesis.
        deviation: of the normal values.
    """
    if weight.dim() < 2:
        weight.fill_(0.0 if name.endswith("bias") else 1.0)
        return
    flat = weight.view(-1)
    for low in range(0, flat.numel(), _CHUNK):
        high = min(low + _CHUNK, flat.numel())
        flat[low:high] = torch.from_numpy(normal_values(run_seed, tensor, low, high, deviation))


def normal_values(
    run_seed: int, tensor: int, start: int, stop: int, deviation: float = STANDARD_DEVIATION
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Elements start..stop−1: float32(T[symbol] · (deviation · 2⁻¹²)), the products in float64."""
    found = block_symbols(Distribution.GAUSSIAN, TAG_INITIAL, run_seed, tensor, start, stop)
    return (GAUSSIAN_TABLE[found] * (deviation * 2.0**-12)).astype(np.float32)
