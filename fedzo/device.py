"""The compute device: where forward passes run, and how a batch gets there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedzo.errors import ConfigError

if TYPE_CHECKING:
    import torch

_ON_CPU_ALONE = ("reference", "numba")
"""Noise backends."""


def get_device(name: str = "cpu", backend: str = "auto") -> torch.device:
    """The device of that name.

    Args:
        name: cpu, cuda, cuda:N, or auto: the first GPU that torch sees, else the CPU.
        backend: the noise backend that is to work there.

    Raises:
        ConfigError: the name is unknown, torch does not see the device, or the backend cannot work there.
    """
    import torch  # noqa: PLC0415

    kind, _, number = name.partition(":")
    if not (name in ("cpu", "auto") or (kind == "cuda" and (number.isdigit() or name == "cuda"))):
        raise ConfigError(f"device {name!r} is unknown; choose cpu, cuda, cuda:N or auto")
    seen = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not seen):
        return torch.device("cpu")
    index = int(number or 0)
    if index >= seen:
        raise ConfigError(
            f"device {name!r} needs {index + 1} CUDA device{'s' if index else ''}, and torch {torch.__version__} sees "
            f"{seen}; choose 'cpu', or install PyTorch's CUDA build and the driver"
        )
    if backend in _ON_CPU_ALONE:
        raise ConfigError(f"backend {backend!r} works on the CPU alone, device is {name!r}; leave the backend 'auto'")
    return torch.device("cuda", index)


def moved(batch: Mapping[str, Any], device: torch.device) -> Mapping[str, Any]:
    """A batch with its tensors on a device, at any depth; the host does not wait for the copy."""
    from torch import Tensor  # noqa: PLC0415
    from torch.utils._pytree import tree_map_only  # noqa: PLC0415

    def there(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if tensor.device.type == "cpu" else tensor).to(device, non_blocking=True)

    return batch if device.type == "cpu" else tree_map_only(Tensor, there, dict(batch))


def free_bytes_of(device: torch.device) -> int:
    """Memory that is free on a device other than the CPU; 0 for the CPU, whose memory is the host's."""
    import torch  # noqa: PLC0415

    return 0 if device.type == "cpu" else int(torch.cuda.mem_get_info(device)[0])
