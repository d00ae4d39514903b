"""Which tier a state goes to, and the memory that there is for it.

`device` is the memory of the compute device, `host` that of the machine; where the CPU computes they are the same.
"""

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from fedzo.base.manifest import Manifest
from fedzo.device import free_bytes_of
from fedzo.tiers.device import page_locked
from fedzo.tiers.disk import DiskStore
from fedzo.tiers.host import HostStore
from fedzo.tiers.store import Store

_CGROUP = Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")
CPU = torch.device("cpu")
_SHARE = 0.5
"""Of the memory that is free: a state larger than this goes to disk."""


def place_of(tier: str, path: Path, device: torch.device = CPU) -> Callable[[Manifest], Store]:
    """What makes the store of a replica.

    Args:
        tier: one of `TIERS`; `auto` is the first of device, host and disk where half of what is free holds the state.
        path: of the state file.
        device: where forward passes run.
    """

    def place(manifest: Manifest) -> Store:
        store = _in_memory(tier, manifest, device)
        return _on_disk(path, manifest) if store is None else store

    return place


def scratch_place(tier: str, directory: Path, device: torch.device = CPU) -> Callable[[Manifest], Store]:
    """As `place_of`, for a replica that nobody comes back to: its file has no name, and is gone with the process.

    Args:
        tier, device: as of `place_of`.
        directory: on a disk that holds the state; where it cannot be written to, that of temporary files is taken.
    """

    def place(manifest: Manifest) -> Store:
        if (store := _in_memory(tier, manifest, device)) is not None:
            return store
        there = directory if os.access(directory, os.W_OK) else None
        with tempfile.NamedTemporaryFile(dir=there, prefix=".fedzo-state-") as named:
            return _on_disk(Path(named.name), manifest, kept=False)

    return place


def _in_memory(tier: str, manifest: Manifest, device: torch.device) -> HostStore | None:
    """The store of a tier in memory; None where the state goes to disk."""
    chosen = tier_for(tier, manifest, free_bytes(), free_bytes_of(device))
    if chosen == "disk":
        return None
    if chosen == "device":
        return HostStore(manifest, torch.empty(manifest.elements, dtype=torch.int32, device=device))
    return HostStore(manifest, None if device == CPU else page_locked(manifest.elements))


def _on_disk(path: Path, manifest: Manifest, *, kept: bool = True) -> DiskStore:
    """The store of a file, read past the page cache where the memory that is free could not hold it there."""
    return DiskStore(path, manifest, kept=kept, cached=4 * manifest.elements <= free_bytes())


def tier_for(tier: str, manifest: Manifest, free: float, free_on_device: float = 0.0) -> str:
    """`device`, `host` or `disk`, for so many int32.

    Args:
        tier: one of `TIERS`.
        manifest: of what is to be held.
        free: bytes of memory that are free.
        free_on_device: likewise, of a device with a memory of its own.
    """
    if tier != "auto":
        return tier
    size = 4 * manifest.elements
    if size <= _SHARE * free_on_device:
        return "device"
    return "disk" if size > _SHARE * free else "host"


def free_bytes() -> int:
    """Memory that is free on this machine, and in the container that the process runs in."""
    free: int = psutil.virtual_memory().available
    limit, used = (_CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def peak_bytes() -> int:
    """The most memory that this process has had resident; getrusage would count what started it, on Linux."""
    if _STATUS.exists():
        return 1024 * int(_STATUS.read_text().split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
