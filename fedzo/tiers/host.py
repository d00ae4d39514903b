"""The state in memory, the host's or a compute device's: one piece for everything."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from fedzo.base.checkpoint import raw_bytes
from fedzo.base.manifest import Manifest
from fedzo.errors import StateFileError
from fedzo.tiers.page import PAGE_BYTES, Page, write_at, write_page
from fedzo.tiers.store import Layout, Piece

_COPIED = 1 << 24
"""Integers that go between a device and a file at a time."""


class HostStore:
    """See `fedzo.tiers.Store`.

    Args:
        manifest: the tensors.
        integers: int32[manifest.elements], kept; of undefined contents where not given.
    """

    path: Path | None = None
    page: Page | None = None
    patience = 0

    def __init__(self, manifest: Manifest, integers: torch.Tensor | None = None) -> None:
        self.integers = torch.empty(manifest.elements, dtype=torch.int32) if integers is None else integers
        self.device = self.integers.device
        self._layout = Layout(manifest)
        self._mask: torch.Tensor | None = None

    @property
    def masked(self) -> bool:
        """See `Store.masked`."""
        return self._mask is not None

    def write(self, start: int, integers: torch.Tensor) -> None:
        """See `Store.write`."""
        self.integers[start : start + integers.numel()] = integers

    def cover(self, words: Iterable[torch.Tensor]) -> None:
        """See `Store.cover`."""
        mask, start = torch.empty(self._layout.words, dtype=torch.int32, device=self.device), 0
        for part in words:
            mask[start : start + part.numel()] = part
            start += part.numel()
        self._mask = mask

    def read(self, tensors: Sequence[int], targets: Sequence[int] | None = None) -> Iterator[Piece]:
        """See `Store.read`."""
        yield self._layout.piece(self.integers, self._mask, tensors, targets)

    def hold(self, tensors: Sequence[int], targets: Sequence[int]) -> list[Piece]:
        """See `Store.hold`: the integers themselves."""
        return list(self.read(tensors, targets))

    def pick(self, tensor: int, starts: Sequence[int], size: int) -> Piece:
        """See `Store.pick`."""
        segments = self._layout.picked(tensor, starts, size, together=False)
        return Piece(self.integers, [tensor], segments, self._layout.mask_of(self._mask, [tensor] * len(starts)))

    def rewrite(self, tensors: Sequence[int], tensors_at_once: int) -> Iterator[Piece]:
        """See `Store.rewrite`."""
        for first in range(0, len(tensors), tensors_at_once):
            yield from self.read(tensors[first : first + tensors_at_once])

    def expect(self, blocks: Sequence[tuple[int, ...]]) -> None:
        """See `Store.expect`: everything is there."""

    def reserve(self, elements: int) -> None:
        """See `Store.reserve`: nothing is read ahead."""

    def load(self, path: Path, page: Page) -> None:
        """See `Store.load`."""
        with path.open("rb") as file:
            file.seek(PAGE_BYTES)
            for part in torch.split(self.integers, _COPIED):
                here = part.cpu()
                file.readinto(raw_bytes(here))
                part.copy_(here)

    def keep(self, path: Path, page: Page) -> None:
        """See `Store.keep`: a copy, written in place of the one before."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                write_page(descriptor, None)
                for number, part in enumerate(torch.split(self.integers, _COPIED)):
                    write_at(descriptor, PAGE_BYTES + 4 * _COPIED * number, raw_bytes(part.cpu()))
                os.ftruncate(descriptor, PAGE_BYTES + self.integers.nbytes)
                write_page(descriptor, page)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StateFileError(
                f"{path}: not written ({error.strerror}); the journal holds the run: free space and resume"
            ) from error
