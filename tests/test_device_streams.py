"""What a ring asks of a GPU's two streams, on a machine that has none: they run in any order that events allow."""

from contextlib import contextmanager
from functools import partial
from random import Random
from types import SimpleNamespace

import pytest
import torch

from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.tiers.device import DeviceRing
from fedzo.tiers.host import HostStore

MANIFEST = Manifest(tuple(TensorSpec(name, (size,), 29, 0) for name, size in zip("abc", (900, 31, 500), strict=True)))
ORDERS = range(30)


class Event:
    """As torch.cuda.Event: whoever waits does so for what was recorded last by then."""

    def __init__(self) -> None:
        self.asked = 0
        self.reached = 0

    def record(self, stream) -> None:
        self.asked += 1
        stream.work.append((None, 0, partial(setattr, self, "reached", self.asked)))


class Stream:
    """As torch.cuda.Stream: work in the order in which it was asked for, later."""

    def __init__(self) -> None:
        self.work = []

    def wait_event(self, event) -> None:
        self.work.append((event, event.asked, lambda: None))

    @property
    def can_go_on(self) -> bool:
        return bool(self.work) and (self.work[0][0] is None or self.work[0][0].reached >= self.work[0][1])


class Gpu:
    """Two streams; copies are those of whichever is current."""

    def __init__(self, monkeypatch) -> None:
        self.copying, self.computing, self._current = Stream(), Stream(), None
        empty, copy = torch.empty, torch.Tensor.copy_

        def later(target, source, non_blocking=False):
            if self._current is None:
                return copy(target, source)
            self._current.work.append((None, 0, partial(copy, target, source)))
            return target

        @contextmanager
        def current(stream):
            self._current = stream
            yield
            self._current = None

        monkeypatch.setattr(torch, "empty", lambda *size, dtype, device: empty(*size, dtype=dtype))
        monkeypatch.setattr(torch.Tensor, "copy_", later)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.copying)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.computing)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", current)

    def work(self, order: Random) -> None:
        """All that was asked for, the streams taking turns at random."""
        while waiting := [stream for stream in (self.copying, self.computing) if stream.work]:
            able = [stream for stream in waiting if stream.can_go_on]
            assert able, "both streams wait"
            _, _, do = order.choice(able).work.pop(0)
            do()


BLOCKS = ([0], [1, 2], [2])


def brought(monkeypatch, store, order: int, careless: str = "", *, held: bool = False) -> list[torch.Tensor]:
    """What kernels that are asked for with each piece find, three passes, none of them waited for.

    Args:
        careless: a stream that waits for no event.
        held: blocks are held, and two kernels asked for with each; else brought, piece by piece.
    """
    with monkeypatch.context() as patch:
        gpu, found = Gpu(patch), []
        if careless:
            patch.setattr(getattr(gpu, careless), "wait_event", lambda event: None)
        ring = DeviceRing(SimpleNamespace(type="cuda"), 200)
        for _ in range(3):
            for block in BLOCKS:
                for piece in ring.hold(store.hold(block, [0] * 3)) if held else ring.bring(store.read(block)):
                    kernel = partial(lambda integers: found.append(integers.clone()), piece.integers)
                    gpu.computing.work += [(None, 0, kernel)] * (1 + held)
        gpu.work(Random(order))
    return found[:: 1 + held]


def expected(store) -> torch.Tensor:
    return torch.cat([store.integers[:900], store.integers[900:], store.integers[931:]]).repeat(3)


@pytest.fixture
def store():
    return HostStore(MANIFEST, torch.arange(MANIFEST.elements, dtype=torch.int32))


@pytest.mark.parametrize("held", [False, True])
def test_whatever_the_streams_order_kernels_find_what_was_sent(held, store, monkeypatch):
    for order in ORDERS:
        assert torch.equal(torch.cat(brought(monkeypatch, store, order, held=held)), expected(store))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("careless", ["copying", "computing"])
def test_they_would_not_if_a_stream_did_not_wait(careless, held, store, monkeypatch):
    found = [torch.cat(brought(monkeypatch, store, order, careless, held=held)) for order in ORDERS]
    assert not all(torch.equal(each, expected(store)) for each in found)
