"""What directions touch within a state, to the bit: on every backend and tier, in every chunking."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import backend_for_cpu, make_genesis
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedzo.base.checkpoint import Base, base_digest
from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.coordinator.range_guard import RangeGuard
from fedzo.errors import ConfigError, JournalFormatError, RangeGuardError, ReplicaError
from fedzo.estimate import Estimator
from fedzo.journal import Commit, Entry, Record
from fedzo.journal.genesis_codec import decode_genesis, encode_genesis
from fedzo.noise import Distribution
from fedzo.scopes import ALL, Kind, Scope
from fedzo.scopes.layers import LayerTouches, block_name
from fedzo.scopes.mask import mask_words, threshold
from fedzo.state.replica import Replica
from fedzo.state.statefile import load_state, save_state
from fedzo.tiers.disk import DiskStore
from fedzo.tiers.host import HostStore

GOLDEN = Path(__file__).parent / "golden" / "scopes.txt"
BACKENDS = ("reference", "numba", "torch")
SPARSE = Scope(kind=Kind.SPARSE, sparsity=750_000)
NAMES = ["model.embed.weight", *(f"model.layers.{k}.{part}" for k in range(12) for part in ("a.weight", "b.bias"))]
NAMES = sorted([*NAMES, "model.norm.weight", "lm_head.weight"], key=str.encode)


class Net(nn.Module):
    """Three numbered blocks between an embedding and a head, of sizes that are no multiples of anything."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.embed = nn.Embedding(67, 19)
        self.layers = nn.ModuleList(nn.Linear(19, 19) for _ in range(3))
        self.wide = nn.Linear(19, 531)
        self.empty = nn.Parameter(torch.empty(0, 3))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.layers[1].bias.data.zero_()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.wide(hidden)


def made(scope: Scope, place=HostStore, distribution=Distribution.RADEMACHER, backend="numba", threads=1) -> Replica:
    net = Net()
    base = Base("net", net, base_digest(net))
    return Replica.from_base(
        base, distribution, scope=scope, backend=backend_for_cpu(backend), threads=threads, place=place
    )


def masks(sparsity: int) -> torch.Tensor:
    """Where the state is touched, from sorted magnitudes: bool[elements]."""
    replica, found = made(ALL), []
    for spec, start in zip(replica.manifest, replica.manifest.starts, strict=True):
        magnitudes = replica.state[start : start + spec.size].abs()
        if spec.size:
            kept = spec.size - spec.size * sparsity // 10**6
            found.append(magnitudes <= magnitudes.sort().values[kept - 1])
    return torch.cat(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300_000), st.integers(1, 999_999), st.sampled_from([1, 7, 10**6, 2**29]), st.integers(0, 9))
def test_a_threshold_is_the_order_statistic_of_the_integers(size, sparsity, distinct, seed):
    generator = np.random.default_rng(seed)
    integers = generator.integers(-distinct, distinct + 1, size)
    weight = torch.from_numpy(integers.astype(np.float64) * 2.0**-29)
    kept = size - size * sparsity // 10**6
    most = threshold(weight, 29, sparsity)
    assert most == np.sort(np.abs(integers))[kept - 1]
    words = torch.cat(list(mask_words(weight, 29, sparsity))).numpy()
    assert len(words) == -(-size // 32)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert np.array_equal(bits[:size].astype(bool), np.abs(integers) <= most)
    assert not bits[size:].any()


def test_ties_at_the_threshold_are_all_touched():
    weight = torch.tensor([3.0, -1, 1, 1, -2, 0]) * 2.0**-20
    assert threshold(weight, 29, 500_000) == 1 << 9
    (words,) = mask_words(weight, 29, 500_000)
    assert words.tolist() == [0b101110]
    assert threshold(torch.zeros(5), 29, 999_999) == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distribution", Distribution)
@pytest.mark.parametrize("buffer_elements", [None, 64, 1000])
def test_sparse_commits_touch_the_mask_as_all_would_and_nothing_else(tmp_path, backend, distribution, buffer_elements):
    def place(manifest):
        return (
            HostStore(manifest)
            if buffer_elements is None
            else DiskStore(tmp_path / "state", manifest, buffer_elements=buffer_elements)
        )

    replica, whole = made(SPARSE, place, distribution, backend, 2), made(ALL, distribution=distribution)
    base = replica.state.clone()
    entries = [Entry(seed, (seed - 3) * 10**9) for seed in range(1, 9)]
    for each in (replica, whole):
        each.add(entries)
    touched = masks(750_000)
    assert 0.2 < touched.float().mean() < 0.35
    assert torch.equal(replica.state, torch.where(touched, whole.state, base))
    assert not torch.equal(replica.state, base)
    replica.add(Entry(seed, -coefficient) for seed, coefficient in entries)
    assert torch.equal(replica.state, base)


@pytest.mark.parametrize("scope", [SPARSE, Scope(kind=Kind.LAYERS, layers_per_direction=2)])
@pytest.mark.parametrize("distribution", Distribution)
@pytest.mark.parametrize("buffer_elements", [None, 64, 1000])
def test_weights_are_those_of_the_reference_however_they_are_made(tmp_path, scope, distribution, buffer_elements):
    def place(manifest):
        return (
            HostStore(manifest)
            if buffer_elements is None
            else DiskStore(
                tmp_path / f"state-{len(list(tmp_path.iterdir()))}", manifest, buffer_elements=buffer_elements
            )
        )

    found = []
    for backend, threads, where in [
        ("reference", 1, HostStore),
        *((b, t, place) for b in BACKENDS[1:] for t in (1, 2)),
    ]:
        replica = made(scope, where, distribution, backend, threads)
        replica.add([Entry(7, 3 * 10**10)])
        lanes = [replica.overlay({5: 10**10}, [(9, s * 10**9)]) for s in (1, -1)] + [replica.overlay({})]
        increments = replica.increments(lanes)
        every = range(len(replica.manifest))
        out = torch.zeros(3, replica.manifest.elements)
        replica.materialise(every, replica.manifest.starts, increments, out)
        rows = [replica.rows(replica_index(replica, "wide.weight"), [530, 3, 4], increments, lane) for lane in range(3)]
        single = replica.increments([replica.overlay({}, [(9, 10**9)])])
        alone = torch.zeros(1, replica.manifest.elements)
        for tensor, start in zip(every, replica.manifest.starts, strict=True):
            replica.materialise([tensor], [start], single, alone)
        found.append((out, torch.stack(rows), alone, replica.digest()))
    for other in found[1:]:
        assert all(map(torch.equal, other[:3], found[0][:3]))
        assert other[3] == found[0][3]


def replica_index(replica: Replica, name: str) -> int:
    return [spec.name for spec in replica.manifest].index(name)


def test_the_blocks_are_named_by_the_first_number():
    assert block_name("model.layers.3.experts.5.w1.weight") == "model.layers.3"
    assert block_name("0.weight") == "0"
    assert block_name("layer1.weight") == block_name("model.embed_tokens.weight") == block_name("stack.0") == ""
    touches = LayerTouches(NAMES, 13)
    assert len(touches.blocks) == 13
    with pytest.raises(ConfigError, match="layers-per-direction is 14; this model has 13 blocks"):
        LayerTouches(NAMES, 14)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 13), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
def test_each_direction_touches_so_many_blocks_whichever_others_are_asked_for(count, seeds):
    touches = LayerTouches(NAMES, count)
    touched = touches.of(np.array(seeds, dtype=np.uint64))
    blocks = [block_name(name) for name in NAMES]
    for seed, row in zip(seeds, touched, strict=True):
        of_block = {block: {bool(t) for b, t in zip(blocks, row, strict=True) if b == block} for block in blocks}
        assert all(len(found) == 1 for found in of_block.values())
        assert sum(found == {True} for found in of_block.values()) == count
        assert np.array_equal(touches.of(np.array([seed], dtype=np.uint64))[0], row)


def test_blocks_are_drawn_uniformly():
    touched = LayerTouches(NAMES, 4).of(np.arange(13_000, dtype=np.uint64))
    share = touched[:, [NAMES.index(f"model.layers.{k}.a.weight") for k in range(12)] + [0]].mean(axis=0)
    assert np.all(np.abs(share - 4 / 13) < 5 * np.sqrt(4 / 13 * 9 / 13 / 13_000))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("distribution", Distribution)
def test_a_direction_of_layers_touches_its_blocks_as_all_would_and_nothing_else(backend, distribution):
    scope = Scope(kind=Kind.LAYERS, layers_per_direction=2)
    touches = LayerTouches([spec.name for spec in made(ALL).manifest], 2)
    for seed in range(6):
        replica, whole = made(scope, distribution=distribution, backend=backend), made(ALL, distribution=distribution)
        base = whole.state.clone()
        replica.add([Entry(seed, 10**10)])
        whole.add([Entry(seed, 10**10)])
        sizes = torch.tensor([spec.size for spec in replica.manifest])
        touched = torch.from_numpy(touches.of(np.array([seed], dtype=np.uint64))[0]).repeat_interleave(sizes)
        assert torch.equal(replica.state, torch.where(touched, whole.state, base))
        assert 0 < touched.float().mean() < 1


class Counting:
    """A backend that counts the weights that it is asked to make."""

    name = "counting"

    def __init__(self) -> None:
        self._backend = backend_for_cpu("numba")
        self.materialised = self.committed = 0

    def commit(self, state, segments, steps, threads):
        self.committed += sum(segment.size for segment in segments)
        self._backend.commit(state, segments, steps, threads)

    def materialise(self, state, segments, steps, out, threads):
        self.materialised += len(out) * sum(segment.size for segment in segments)
        self._backend.materialise(state, segments, steps, out, threads)


def test_lanes_share_what_no_direction_of_theirs_touches_and_commits_leave_it_alone():
    scope, net, backend = Scope(kind=Kind.LAYERS, layers_per_direction=1), Net(), Counting()
    base = Base("net", net, base_digest(net))
    plain = made(ALL)
    replica = Replica.from_base(base, Distribution.RADEMACHER, scope=scope, backend=backend)
    manifest, ids = replica.manifest, torch.arange(12)[None]
    touches = LayerTouches([spec.name for spec in manifest], 1)
    seed = next(
        s for s in range(99) if touches.of(np.array([s], dtype=np.uint64))[0, replica_index(replica, "layers.1.bias")]
    )
    estimator = Estimator(net, replica, loss=lambda model, batch: model(batch["ids"]).square().mean())
    plus, minus = estimator.losses({"ids": ids}, [(seed, (10**10, -(10**10)))])[0]
    assert plus != minus
    of_layer, of_wide = 19 * 19 + 19, 19 * 531 + 531
    assert backend.materialised == (2 * of_layer) + 2 * of_layer + of_wide + 2 * 12 * 19
    replica.add([Entry(seed, 10**10)])
    assert backend.committed == of_layer
    assert torch.equal(
        replica.weights(replica_index(replica, "wide.weight")), plain.weights(replica_index(plain, "wide.weight"))
    )


def test_the_range_guard_counts_a_direction_where_it_touches():
    manifest = Manifest(tuple(TensorSpec(f"layers.{k}.weight", (4,), 29, 2**29) for k in range(8)))
    scope = Scope(kind=Kind.LAYERS, layers_per_direction=1)
    touches = LayerTouches([spec.name for spec in manifest], 1)
    guard, of_all = RangeGuard(manifest, Distribution.RADEMACHER, scope), RangeGuard(manifest, Distribution.RADEMACHER)
    seeds = np.arange(40, dtype=np.uint64)
    most = int(touches.of(seeds).sum(axis=0).max())
    record = Record(1, Commit(tuple(Entry(int(s), 2**40 // most - 2**30) for s in seeds), 0.1, ()))
    guard.apply(record)
    with pytest.raises(RangeGuardError):
        of_all.check(record.entries)
    heavy = int(seeds[touches.of(seeds)[:, touches.of(seeds).sum(axis=0).argmax()]][0])
    with pytest.raises(RangeGuardError):
        guard.check((Entry(heavy, 2**40),))
    of_all.check_perturbation(2**30)
    guard.check_perturbation(2**30)


def test_a_state_file_does_not_hold_the_mask_which_comes_from_the_base(tmp_path):
    path, hashes = tmp_path / "state", [bytes(32), bytes(31) + b"1"]
    first = made(SPARSE)
    first.record_hash = hashes[0]
    first.add([Entry(1, 10**10)])
    save_state(path, first)
    assert path.stat().st_size == 4096 + 4 * first.manifest.elements
    for place in (HostStore, lambda manifest: DiskStore(path, manifest, buffer_elements=500)):
        net = Net()
        again = Replica.from_base(
            Base("net", net, base_digest(net)), Distribution.RADEMACHER, scope=SPARSE, place=place, defer=True
        )
        load_state(path, again, hashes)
        again.resume([], hashes[:1])
        again.totals[1] = 10**10
        assert again.digest() == first.digest()
        again.add([Entry(2, 10**10)])
    first.add([Entry(2, 10**10)])
    assert again.digest() == first.digest()
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_sparse_replica_without_its_mask_is_refused():
    manifest = made(ALL).manifest
    bare = Replica(manifest, made(ALL).state, Distribution.RADEMACHER, scope=SPARSE)
    with pytest.raises(ReplicaError, match="not made yet"):
        bare.increments([[]])


def test_a_journal_of_another_scope_is_refused():
    net = Net()
    base = Base("net", net, base_digest(net))
    replica = Replica.from_base(base, Distribution.RADEMACHER, scope=SPARSE)
    genesis = make_genesis(manifest=replica.manifest)
    with pytest.raises(ReplicaError, match=r"journal has scope 'all', this replica was made for 'sparse' \(sparsity"):
        replica.start_at(genesis, genesis.base_digest, bytes(32))


SCOPES = [
    ALL,
    SPARSE,
    Scope(kind=Kind.LAYERS, layers_per_direction=3),
    Scope(kind=Kind.LORA, lora_rank=8, lora_alpha=16.0, lora_targets=("q_proj", "v_proj")),
    Scope(kind=Kind.PREFIX, virtual_tokens=5),
    Scope(kind=Kind.HEAD),
]


@pytest.mark.parametrize("scope", SCOPES, ids=lambda scope: scope.kind.value)
def test_a_genesis_says_its_scope(scope):
    genesis = make_genesis(scope=scope)
    assert decode_genesis(encode_genesis(genesis)) == genesis


@pytest.mark.parametrize(
    ("settings_given", "message"),
    [
        ({"kind": Kind.SPARSE}, "scope 'sparse' needs sparsity"),
        ({"kind": Kind.SPARSE, "sparsity": 10**6}, "sparsity is 1; expected more than 0 and less than 1"),
        ({"sparsity": 1}, "scope 'all' has no use for sparsity"),
        ({"kind": Kind.LAYERS}, "needs layers-per-direction"),
        ({"kind": Kind.LORA, "lora_rank": 1, "lora_targets": ("q",)}, "needs lora-alpha"),
        ({"kind": Kind.LORA, "lora_rank": 1, "lora_alpha": -1.0, "lora_targets": ("q",)}, "expected a number above 0"),
        ({"kind": Kind.HEAD, "virtual_tokens": 2}, "no use for virtual-tokens"),
    ],
)
def test_settings_of_another_kind_are_refused_by_name(settings_given, message):
    with pytest.raises(ConfigError, match=message):
        Scope(**settings_given)


def test_a_journal_of_a_scope_that_is_unknown_is_refused_by_name():
    payload = encode_genesis(make_genesis(scope=Scope(kind=Kind.HEAD)))
    with pytest.raises(JournalFormatError, match="scope 'hear' is unknown to this fedzo, which knows all, sparse"):
        decode_genesis(payload.replace(b"head", b"hear"))


def test_golden_scopes():
    """A change of these lines is a new numerics version (CONTRIBUTING.md)."""
    touches, replica = LayerTouches(NAMES, 4), made(SPARSE)
    replica.add([Entry(1, 10**10), Entry(2**63, -(10**9))])
    lines = [f"digest sparse : {replica.digest().hex()}"]
    for seed in (0, 1, 2**64 - 1):
        row = touches.of(np.array([seed], dtype=np.uint64))[0]
        drawn = sorted({block_name(name) or "-" for name, touched in zip(NAMES, row, strict=True) if touched})
        lines.append(f"layers {seed} : {' '.join(drawn)}")
    weight = torch.arange(-40, 40, dtype=torch.float64) * 2.0**-10
    words = [f"{int(word) % 2**32:08x}" for word in torch.cat(list(mask_words(weight, 29, 600_000)))]
    lines.append(f"mask : {threshold(weight, 29, 600_000)} {' '.join(words)}")
    golden = [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    assert lines == golden, "\n".join(["the actual lines:", *lines])
