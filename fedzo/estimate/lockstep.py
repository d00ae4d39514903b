"""Lanes: several forward passes that go through a model together, block by block.

Each lane is a greenlet. Where the model is about to enter a layer, or reads a weight that is not in place, the
lane pauses; the scheduler brings that block in for every lane that waits for it, each with its own overlay, noise
made once, and lets them run it one after the other. That is ZO2's dual forward (Wang et al. 2025) for any module,
without its code per architecture. Lanes may wait at different blocks; order never changes a result.

Torch keeps grad mode, autocast and random state per thread, and all lanes share one: they are put aside at each
switch. Greenlets do not cross threads, so a scheduler is used from one thread.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn
from torch.utils.hooks import RemovableHandle

from fedzo.base.manifest import Manifest
from fedzo.estimate.scratch import ScratchPool
from fedzo.estimate.skeleton import Skeleton
from fedzo.estimate.weights import Group, Out, Weights

Block = tuple[int, ...]

_AHEAD = 8
"""Blocks that are read ahead, as far as there is room."""
_LINE = 32
"""Elements; a multiple of a cache line in every compute type."""


class _TorchState:
    """What torch keeps per thread, or device, and a forward may change."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._grad = torch.is_grad_enabled()
        self._autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in {"cpu", device.type}
        }
        self._random = torch.get_rng_state()
        self._random_there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_grad_enabled(self._grad)
        for kind, (enabled, dtype) in self._autocast.items():
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_rng_state(self._random)
        if self._random_there is not None:
            torch.cuda.set_rng_state(self._random_there, self._device)


class _Lane:
    """One forward pass: what it waits for and the weights it has in place."""

    def __init__(
        self,
        job: Callable[[], Any],
        place: tuple[int, int],
        parent: greenlet,
        tied: frozenset[int],
        device: torch.device,
    ) -> None:
        self.group, self.column = place
        """Whose overlay it reads: which group's, and which in it."""
        self.wanted: Block | None = None
        self.result: Any = None
        self.weights: dict[int, torch.Tensor] = {}
        self._open: list[Block] = []
        self._tied = tied
        self._device = device
        self._state = _TorchState(device)
        self._greenlet = greenlet(job, parent)

    def resume(self) -> None:
        """Run to the next pause or the end."""
        outside = _TorchState(self._device)
        self._state.restore()
        self.wanted = None
        try:
            self.result = self._greenlet.switch()
        finally:
            self._state = _TorchState(self._device)
            outside.restore()
        if self._greenlet.dead:
            self.weights = {}

    def stop(self) -> None:
        """Unwind a lane that will not be resumed."""
        if not self._greenlet.dead:
            self._greenlet.throw(GreenletExit)

    def need(self, block: Block) -> None:
        """Pause until a block is in place; called inside the lane."""
        if all(index in self.weights for index in block):
            return
        self._drop_all_but(block)
        self.wanted = block
        getcurrent().parent.switch()

    def enter(self, block: Block) -> None:
        """A layer's forward begins."""
        self.need(block)
        self._open.append(block)

    def leave(self, block: Block) -> None:
        """A layer's forward ended; its weights may go."""
        self._open.remove(block)
        self._drop_all_but(())

    def _drop_all_but(self, block: Block) -> None:
        """Keep a block, those of open layers, and tied weights, which another block will ask for again."""
        held = self._tied.union(block, *self._open)
        self.weights = {index: weight for index, weight in self.weights.items() if index in held}


class _Place:
    """Where the tensors of a block lie in scratch, each from a cache line on: matrices apart from what stays float32.

    Args:
        block: its tensors.
        manifest: of all.
        apart: matrices lie in an array of their own, in the compute type.
    """

    def __init__(self, block: Block, manifest: Manifest, *, apart: bool) -> None:
        self.specs = [manifest.tensors[index] for index in block]
        self.elements = sum(spec.size for spec in self.specs)
        self.starts: list[int] = []
        self.exact_width = self.cast_width = 0
        for spec in self.specs:
            lines = -(-spec.size // _LINE) * _LINE
            if apart and spec.is_matrix:
                self.starts.append(self.cast_width)
                self.cast_width += lines
            else:
                self.starts.append(self.exact_width)
                self.exact_width += lines


class Lockstep:
    """Runs lanes through a skeleton.

    Args:
        skeleton: the model.
        weights: where they come from.
        dtype: compute type; in a 16-bit type tensors of rank 0 and 1 stay float32 (docs/numerics.md).
    """

    def __init__(self, skeleton: Skeleton, weights: Weights, dtype: torch.dtype) -> None:
        self._skeleton = skeleton
        self._weights = weights
        self._dtype = dtype
        self._apart = weights.casts and dtype is not torch.float32
        self._scratch = ScratchPool(weights.device)
        self._places: dict[Block, _Place] = {}
        self._order: dict[Block, int] = {}
        self._running: _Lane | None = None
        self._hooks: list[RemovableHandle] = []
        weights.reserve(max((self._located(block).elements for _, block in skeleton.layers), default=0))
        for layer, block in skeleton.layers:
            self._hooks.append(layer.register_forward_pre_hook(self._entering(block)))
            self._hooks.append(layer.register_forward_hook(self._leaving(block), always_call=True))

    def give_back(self, weight: Callable[[int], torch.Tensor]) -> None:
        """Make the model a plain one; nothing can be run here afterwards.

        Args:
            weight: gives each tensor's weight, by its index.
        """
        for hook in self._hooks:
            hook.remove()
        self._skeleton.fill(weight)

    @property
    def scratch_bytes(self) -> int:
        """Memory of the host that materialised weights take."""
        return self._scratch.bytes

    def run(self, jobs: Sequence[tuple[Callable[[], Any], tuple[int, int]]], groups: Sequence[Group]) -> list[Any]:
        """Run every job as a lane of its own.

        Args:
            jobs: (what to run, whose overlay it reads: which group's, and which in it).
            groups: the overlays.

        Returns:
            What each job returned, in order. An exception in a lane stops all and is raised.
        """
        device = self._weights.device
        lanes = [_Lane(job, place, getcurrent(), self._skeleton.tied, device) for job, place in jobs]
        self._weights.begin(groups)
        self._skeleton.fetch, self._skeleton.look_up = self._fetch, self._look_up
        try:
            for lane in lanes:
                self._resume(lane)
            while waiting := [lane for lane in lanes if lane.wanted is not None]:
                wanted = min((lane.wanted for lane in waiting if lane.wanted), key=self._place)
                self._serve(wanted, [lane for lane in waiting if lane.wanted == wanted])
        finally:
            for lane in lanes:
                self._running = lane
                lane.stop()
            self._running = None
            self._skeleton.fetch = self._skeleton.look_up = None
        return [lane.result for lane in lanes]

    def _resume(self, lane: _Lane) -> None:
        self._running = lane
        lane.resume()
        self._running = None

    def _place(self, block: Block) -> int:
        return self._order.setdefault(block, len(self._order))

    def _following(self, block: Block) -> list[Block]:
        """The blocks that came after this one before; the last is followed by the first of the next lanes."""
        known = list(self._order)
        after = known.index(block) + 1
        return (known[after:] + known[:after])[:_AHEAD]

    def _located(self, block: Block) -> _Place:
        if block not in self._places:
            self._places[block] = _Place(block, self._weights.manifest, apart=self._apart)
        return self._places[block]

    def _fetch(self, tensor: int, block: Block) -> torch.Tensor:
        lane = self._running
        assert lane is not None
        if tensor not in lane.weights:
            lane.need(block)
        return lane.weights[tensor]

    def _look_up(self, table: int, ids: torch.Tensor) -> torch.Tensor:
        """Rows of an embedding's table, each made once; only what the batch uses is read."""
        lane, spec = self._running, self._weights.manifest.tensors[table]
        assert lane is not None
        found, places = torch.unique(ids, return_inverse=True)
        rows = found.tolist()
        if rows and not 0 <= rows[0] <= rows[-1] < spec.shape[0]:
            raise IndexError(
                f"{spec.name}: row {rows[-1] if rows[0] >= 0 else rows[0]} of {spec.shape[0]} is asked for"
            )
        return self._weights.rows(table, rows, lane.group, lane.column).to(self._dtype)[places]

    def _serve(self, block: Block, waiting: list[_Lane]) -> None:
        """Bring a block in and let every lane that waits for it go on, a group after the other."""
        groups = sorted({lane.group for lane in waiting})
        make = self._weights.open(block, self._located(block).starts, len(groups))
        for number in groups:
            group = [lane for lane in waiting if lane.group == number]
            self._make(block, group, partial(make, number))
            if number == groups[0]:
                self._weights.expect(self._following(block))
            for lane in group:
                self._resume(lane)

    def _make(self, block: Block, group: list[_Lane], make: Callable[[Sequence[int], Out], None]) -> None:
        """Give the lanes of a group their weights of a block."""
        alike = self._weights.alike(block, group[0].group)
        columns = sorted({alike[lane.column] for lane in group})
        place, count = self._located(block), len(columns)
        exact = self._scratch.take(count, place.exact_width, torch.float32)
        if self._apart:
            cast = self._scratch.take(count, place.cast_width, self._dtype)
            make(columns, Out(exact, cast))
        else:
            make(columns, Out(exact))
            half = self._dtype is not torch.float32
            cast = self._scratch.take(count, place.exact_width, self._dtype).copy_(exact) if half else exact
        for lane in group:
            row = columns.index(alike[lane.column])
            for index, start, spec in zip(block, place.starts, place.specs, strict=True):
                made = cast if spec.is_matrix else exact
                lane.weights[index] = made[row, start : start + spec.size].view(spec.shape)

    def _entering(self, block: Block) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, arguments: Any) -> None:
            if self._running is not None:
                self._running.enter(block)

        return hook

    def _leaving(self, block: Block) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if self._running is not None:
                self._running.leave(block)

        return hook
