"""Compute copies: to the bit what docs/numerics.md says, on every backend and tier, from any way to a position."""

import copy
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from blake3 import blake3
from commands import FEDZO, fedzo, refused, simulate_options
from helpers import BACKENDS_HERE, backend_for_cpu, counted_reads
from test_estimate import EPSILON, plain_loss
from test_simulate import wait_for_progress

from fedzo.base.checkpoint import Base, base_digest, unique_parameters
from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.estimate import Estimator, weights_of
from fedzo.estimate.copied import CopiedWeights
from fedzo.estimate.weights import Out
from fedzo.journal import Commit, Entry, Record, read_journal
from fedzo.noise import Distribution, Increments
from fedzo.results.rebuild import rebuild
from fedzo.run_directory import RunDirectory
from fedzo.state.compute_copy import CopyFormat
from fedzo.state.replica import Replica
from fedzo.tiers import COPIES
from fedzo.tiers.choice import scratch_place
from fedzo.tiers.disk import DiskStore

KINDS = tuple(kind for kind in COPIES if kind != "none")
GOLDEN = Path(__file__).parent / "golden" / "compute_copy.txt"
MANIFEST = Manifest(
    (
        TensorSpec("a", (3, 8), 29, 2**29),
        TensorSpec("b", (2, 2, 4), 9, 2**29),
        TensorSpec("c", (5,), 29, 2**29),
        TensorSpec("d", (4, 5), 25, 2**29),
        TensorSpec("e", (60, 168), 28, 2**28),
    )
)
HASHES = [blake3(position.to_bytes(2)).digest() for position in range(200)]


def states() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    state = torch.randint(-(2**27), 2**27, (MANIFEST.elements,), dtype=torch.int32, generator=generator)
    state[8:16] = 0  # a row of nothing
    return state


def replica_of(backend: str = "auto", distribution=Distribution.RADEMACHER, store=None) -> Replica:
    replica = Replica(
        MANIFEST, states() if store is None else store, distribution, backend=backend_for_cpu(backend), threads=2
    )
    replica.record_hash = HASHES[0]
    return replica


def copied_value(kind: str, w: np.ndarray) -> np.ndarray:
    """The copy of a tensor in float32, as the page says it, in numpy."""
    if kind == "int8":
        rows = w.reshape(len(w), -1)
        scale = np.abs(rows).max(axis=1) / np.float32(127)
        q = np.clip(np.rint(rows / np.where(scale > 0, scale, np.float32(1))[:, None]), -127, 127)
        return (q.astype(np.float32) * scale[:, None]).reshape(w.shape)
    if kind == "fp16":
        return np.clip(w, -65504, 65504).astype(np.float16).astype(np.float32)
    bits = w.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def expected(kind: str, replica: Replica, at_anchor: np.ndarray, since: Increments, tensor: int) -> np.ndarray:
    """float32 weights of one tensor in one lane."""
    spec, start = MANIFEST.tensors[tensor], MANIFEST.starts[tensor]
    theta = at_anchor[start : start + spec.size].reshape(spec.shape)
    scale = np.float32(2.0**-spec.exponent)
    moved = replica_of("reference", replica.distribution, torch.zeros(MANIFEST.elements, dtype=torch.int32))
    added = torch.empty(1, spec.size)
    moved.materialise([tensor], [0], since, added)
    if not CopyFormat(kind, MANIFEST).copied(tensor):
        integers = torch.zeros(MANIFEST.elements, dtype=torch.int32)
        integers[start : start + spec.size] = torch.from_numpy(theta.reshape(-1).copy())
        exact = replica_of("reference", replica.distribution, integers)
        exact.materialise([tensor], [0], since, added)
        return added.numpy().reshape(spec.shape)
    return copied_value(kind, theta.astype(np.float32) * scale) + added.numpy().reshape(spec.shape)


def weights(read: CopiedWeights, groups, tensors) -> list[torch.Tensor]:
    """Tensors of every group, made together."""
    read.begin(groups)
    targets = [sum(read.manifest.tensors[k].size for k in tensors[:n]) for n in range(len(tensors))]
    size = sum(read.manifest.tensors[k].size for k in tensors)
    make = read.open(tensors, targets, len(groups))
    found = []
    for number, group in enumerate(groups):
        out = torch.full((len(group), size), float("nan"))
        make(number, range(len(group)), Out(out))
        found.append(out)
    return found


@pytest.mark.parametrize("distribution", Distribution)
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_the_page_on_every_backend_and_tier(kind, distribution, tmp_path, monkeypatch):
    monkeypatch.setattr("fedzo.estimate.copied._CHUNK", 100)
    entries = [Entry(seed, (-1) ** seed * 10**10) for seed in range(9)]
    steps = {77: 10**9}
    tensors = range(len(MANIFEST))
    made, read = [], None
    for backend in BACKENDS_HERE:
        for tier in ("host", "disk"):
            replica = replica_of(backend, distribution)
            read = CopiedWeights(replica, kind, scratch_place(tier, tmp_path))
            replica.apply(Record(1, Commit(tuple(entries), 0.1, ())), HASHES[1])
            perturbations = [[(5, EPSILON)], [(5, -EPSILON)]]
            groups = [[replica.overlay(steps, p) for p in perturbations], [replica.overlay({}, [(6, EPSILON)])]]
            made.append([*weights(read, groups, list(tensors)), *weights(read, groups[1:], [4, 0])])
            rows = read.rows(4, [7, 8, 50], 0, 0)
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))
    since = replica.steps([[*replica.drift.terms(replica.totals), *groups[0][1]]])
    found, start = made[0][0][1], 0
    for tensor, spec in enumerate(MANIFEST):
        want = expected(kind, replica, states().numpy(), since, tensor)
        assert np.array_equal(found[start : start + spec.size].numpy().reshape(spec.shape), want), spec.name
        start += spec.size
    whole = made[0][2][0, : 60 * 168].view(60, 168)
    assert torch.equal(rows, whole[[7, 8, 50]])


@pytest.mark.parametrize("kind", KINDS)
def test_golden_vectors(kind):
    """One tensor of a state: the copy's own values, and its weights at an anchor, an entry since, and +ε."""
    lines = [line.split() for line in GOLDEN.read_text().splitlines() if line.startswith(kind)]
    replica = replica_of("reference")
    read = CopiedWeights(replica, kind, scratch_place("host", Path()))
    replica.apply(Record(1, Commit((Entry(3, 10**10),), 0.1, ())), HASHES[1])
    (made,) = weights(read, [[replica.overlay({}, []), replica.overlay({}, [(5, EPSILON)])]], [0])
    assert len(lines) == MANIFEST.tensors[0].size
    for element, (_, number, integer, at_zero, at_plus) in enumerate(lines):
        assert int(number) == element
        assert int(integer) == int(states()[element])
        assert float.fromhex(at_zero) == float(made[0, element])
        assert float.fromhex(at_plus) == float(made[1, element])


@pytest.mark.parametrize("kind", KINDS)
def test_however_a_replica_came_to_its_position_it_reads_the_same_weights(kind, tmp_path):
    """A record at a time, all at once, from a file behind, with local steps taken and undone on the way."""
    records = [
        Record(n, Commit(tuple(Entry(7 * n + k, 10**9 + n) for k in range(n % 6)), 0.1, ())) for n in range(1, 40)
    ]
    hashes = HASHES[: len(records) + 1]
    alone = replica_of()
    read = CopiedWeights(alone, kind, scratch_place("host", tmp_path))
    for position, record in enumerate(records, start=1):
        alone.apply(record, hashes[position])
        weights(read, [[[]]], [4])
        if position % 5 == 0:
            alone.add([Entry(1000 + k, 10**9) for k in range(20)])
            weights(read, [[[]]], [4])
            alone.add([Entry(1000 + k, -(10**9)) for k in range(20)])
    together, late = replica_of(), replica_of(store=DiskStore(tmp_path / "state", MANIFEST))
    together.catch_up(records, hashes[1:])
    late.store.write(0, states())
    late.resume(records[:11], hashes[:12])
    late.resume(records, hashes)
    found = []
    for replica in (alone, together, late):
        own = read if replica is alone else CopiedWeights(replica, kind, scratch_place("host", tmp_path))
        found.append((weights(own, [[[]]], [4])[0], replica.drift.anchor))
    assert 0 < found[0][1] < len(records)
    for made, anchor in found[1:]:
        assert torch.equal(made, found[0][0])
        assert anchor == found[0][1]


@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_losses_are_the_plain_forwards_of_the_copys_weights_bit_for_bit(name, kind, tier, tmp_path):
    torch.manual_seed(0)
    model, batch = ARCHITECTURES[name]()
    plain = copy.deepcopy(model).eval()
    base = Base("made here", model, base_digest(model))
    replica = Replica.from_base(base, Distribution.RADEMACHER, threads=2, place=scratch_place(tier, tmp_path))
    replica.add(Entry(k, 10**9) for k in range(5))
    read = weights_of(replica, kind, tier, tmp_path)
    ((*found,),) = Estimator(model, replica, weights=read).losses(batch, [(5, (0, EPSILON, -EPSILON))])
    expected = []
    for coefficient in (0, EPSILON, -EPSILON):
        lane = replica.overlay({}, [(5, coefficient)])
        for tensor, parameter in enumerate(unique_parameters(plain).values()):
            parameter.data = weights(read, [[lane]], [tensor])[0].reshape(parameter.shape)
        expected.append(plain_loss(plain, batch))
    assert found == expected
    assert len({*found}) == 3


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "opt"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_near_the_exact_ones_and_the_same_from_disk_and_for_many_directions(kind, name, tmp_path):
    torch.manual_seed(0)
    model, batch = ARCHITECTURES[name]()
    found = []
    for tier, directions, threads in (("host", 1, 1), ("disk", 1, 2), ("disk", 4, 1), (None, 1, 1)):
        mine = copy.deepcopy(model)
        replica = Replica.from_base(
            Base("made here", mine, base_digest(mine)),
            Distribution.RADEMACHER,
            threads=threads,
            place=scratch_place(tier or "host", tmp_path),
        )
        replica.add(Entry(k, 10**9) for k in range(5))
        read = weights_of(replica, kind if tier else "none", tier or "host", tmp_path)
        estimator = Estimator(mine, replica, lanes_at_once=2 * directions, weights=read)
        found.append(estimator.losses(batch, [(seed, (EPSILON, -EPSILON, 0)) for seed in (40, 41, 42, 43)]))
    assert found[0] == found[1] == found[2] != found[3]
    for copied, exact in zip(found[0], found[3], strict=True):
        assert copied == pytest.approx(exact, rel=1e-2)
        assert copied[0] - copied[1] == pytest.approx(exact[0] - exact[1], abs=2e-4)


def test_a_copy_is_read_in_a_quarter_of_the_bytes(tmp_path, monkeypatch):
    read = counted_reads(monkeypatch)
    replica = replica_of()
    for kind, itemsize in (("bf16", 2), ("fp16", 2), ("int8", 1)):
        copied = CopiedWeights(replica, kind, scratch_place("disk", tmp_path))
        weights(copied, [[[]]], [0])
        read.clear()
        weights(copied, [[[]]], [4])
        assert 4 * sum(read) == itemsize * MANIFEST.tensors[4].size


def test_a_run_from_a_copy_is_the_same_from_disk_and_on_another_backend(demo, tmp_path):
    journals = {}
    for name, changed in (
        ("host", {}),
        ("disk", {"state": "disk", "directions-per-pass": 2}),
        ("apart", {"state": "disk", "copy-state": "host"}),
        ("torch", {"backend": "torch"}),
    ):
        options = {"compute-copy": "int8", "directions": 2} | changed
        fedzo("simulate", *simulate_options(demo, tmp_path / name, **options))
        journals[name] = (tmp_path / name / "journal").read_bytes()
    assert len({*journals.values()}) == 1
    replica, _, contents = rebuild(RunDirectory(tmp_path / "host"))
    assert contents.records[-1].state_digest == replica.digest()
    held_out = [r.body.loss for r in contents.records if type(r.body).__name__ == "Evaluation"]
    assert held_out[-1] < held_out[0]
    fedzo("simulate", *simulate_options(demo, tmp_path / "exact", directions=2))
    exact = read_journal(tmp_path / "exact" / "journal")
    assert exact.hashes[0] == contents.hashes[0]
    assert exact.hashes[-1] != contents.hashes[-1]
    assert "copy-state 'ram' is unknown; choose one of: same, auto, device, host, disk" in refused(
        "simulate", *simulate_options(demo, tmp_path / "none", **{"copy-state": "ram"})
    )
    assert "'int4' is unknown" in refused(
        "simulate", *simulate_options(demo, tmp_path / "none", **{"compute-copy": "int4"})
    )


@pytest.mark.slow
def test_a_run_from_a_copy_that_was_killed_is_the_run_left_alone(demo, tmp_path):
    options = {"compute-copy": "int8", "rounds": 30}
    fedzo("simulate", *simulate_options(demo, tmp_path / "alone", **options))
    killed = simulate_options(demo, tmp_path / "killed", **options)
    process = subprocess.Popen([*FEDZO, "simulate", *killed], stderr=subprocess.DEVNULL)
    wait_for_progress(tmp_path / "killed", process)
    process.kill()
    process.wait()
    fedzo("simulate", "--resume", "--out", tmp_path / "killed")
    assert (tmp_path / "killed" / "journal").read_bytes() == (tmp_path / "alone" / "journal").read_bytes()
