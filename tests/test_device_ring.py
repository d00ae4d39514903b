"""The ring of buffers on a compute device, as far as a machine without one can tell: on the CPU."""

import pytest
import torch

from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.noise import Distribution, Increments, Term, get_backend
from fedzo.tiers.device import Carrier, DeviceRing, carrier
from fedzo.tiers.disk import DiskStore
from fedzo.tiers.host import HostStore

CPU = torch.device("cpu")
MANIFEST = Manifest(
    tuple(TensorSpec(name, (size,), 29, 0) for name, size in zip("abcd", (900, 0, 31, 500), strict=True))
)
TARGETS = [500, 0, 1400, 0]
TENSORS = [0, 1, 2, 3]


def filled(store):
    generator = torch.Generator().manual_seed(1)
    store.write(0, torch.randint(-(2**29), 2**29, (MANIFEST.elements,), dtype=torch.int32, generator=generator))
    return store


def stores(directory):
    return [filled(HostStore(MANIFEST)), filled(DiskStore(directory / "state", MANIFEST, buffer_elements=100))]


def made(pieces) -> torch.Tensor:
    """Weights of all tensors at ±ε, from whatever pieces they come in."""
    increments = Increments(Distribution.RADEMACHER, MANIFEST.exponents, [[Term(5, 0, 2**30)], [Term(5, 0, -(2**30))]])
    out = torch.zeros(2, 1440)
    for piece in pieces:
        get_backend("reference").materialise(piece.integers, piece.segments, piece.steps(increments), out, 1)
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reserved", [64, 300, 5000])
def test_what_is_brought_is_what_lies_there(reserved, masked, tmp_path):
    for store in stores(tmp_path):
        if masked:
            generator = torch.Generator().manual_seed(2)
            words = torch.randint(-(2**31), 2**31 - 1, (29 + 1 + 16,), dtype=torch.int32, generator=generator)
            store.cover([words])
        ring, expected = DeviceRing(CPU, reserved), made(store.read(TENSORS, TARGETS))
        for _ in range(3):
            assert torch.equal(made(ring.bring(store.read(TENSORS, TARGETS))), expected)
        held = ring.hold(store.hold(TENSORS, TARGETS))
        list(ring.bring(store.read([3], [0])))
        assert torch.equal(made(held), expected)


def test_a_piece_is_the_callers_until_the_next_is_asked_for():
    store, ring = filled(HostStore(MANIFEST)), DeviceRing(CPU, 200)
    found = []
    for piece in ring.bring(store.read([0])):
        found.append(piece.integers.clone())
        assert torch.equal(piece.integers, found[-1])
    assert torch.equal(torch.cat(found), store.integers[:900])
    assert [len(part) for part in found] == [200, 200, 200, 200, 100]


def test_two_buffers_hold_what_was_reserved_or_is_held():
    store, ring = filled(HostStore(MANIFEST)), DeviceRing(CPU, 100)
    ring.reserve(350)
    for _ in range(3):
        list(ring.bring(store.read(TENSORS)))
    assert [buffer.integers.numel() for buffer in ring._buffers] == [350, 350]
    (held,) = ring.hold(store.hold(TENSORS, TARGETS))
    assert [buffer.integers.numel() for buffer in ring._buffers] == [1431, 1431]
    ring.reserve(600)
    assert torch.equal(held.integers, store.integers)


def test_a_reader_that_stops_half_way_leaves_a_ring_that_works():
    store, ring = filled(HostStore(MANIFEST)), DeviceRing(CPU, 100)
    next(ring.bring(store.read(TENSORS, TARGETS)))
    assert torch.equal(made(ring.bring(store.read(TENSORS, TARGETS))), made(store.read(TENSORS, TARGETS)))


def test_integers_that_lie_on_the_device_are_used_where_they_are():
    store = filled(HostStore(MANIFEST))
    way = carrier(store, CPU)
    assert type(way) is Carrier
    (piece,) = way.bring(store.read(TENSORS))
    assert piece.integers is store.integers
    assert isinstance(carrier(store, torch.device("meta")), DeviceRing)
