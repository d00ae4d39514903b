"""Replicas: the same digest whatever the path, exact undo, honest refusals."""

import shutil
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import BACKENDS_HERE, backend_for_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fedzo.base.checkpoint import base_digest, load_base, unique_parameters
from fedzo.base.manifest import Manifest, TensorSpec, exponent_for
from fedzo.base.quantise import describe_tensor, quantised
from fedzo.coordinator.range_guard import RangeGuard
from fedzo.errors import CheckpointError, RangeGuardError
from fedzo.journal import Entry
from fedzo.noise import Distribution, Increments, Segment, Term
from fedzo.state.replica import Replica

GOLDEN = Path(__file__).parent / "golden"
SHAPES = {"a.bias": (7,), "b.weight": (33, 129), "c.scalar": (), "d.empty": (0, 4), "e.weight": (257, 19)}
ENTRIES = [Entry(3, 10**9), Entry(2**64 - 1, -(10**10)), Entry(3, 5), Entry(77, 123456789), Entry(0, -1)]


def make_replica(distribution=Distribution.RADEMACHER, backend="auto", threads=1, seed=0) -> Replica:
    """A replica of five odd tensors with fixed values."""
    generator = np.random.default_rng(seed)
    specs, parts = [], []
    for number, (name, shape) in enumerate(SHAPES.items()):
        weight = torch.from_numpy(np.asarray(generator.standard_normal(shape) * 3.0**number))
        specs.append(describe_tensor(name, weight))
        parts += [part.clone() for part in quantised(weight, specs[-1].exponent)]
    return Replica(
        Manifest(tuple(specs)), torch.cat(parts), distribution, backend=backend_for_cpu(backend), threads=threads
    )


def one_digest(replicas) -> str:
    digests = {replica.digest().hex() for replica in replicas}
    assert len(digests) == 1
    return digests.pop()


@pytest.mark.parametrize("distribution", Distribution)
def test_one_digest_from_every_backend_thread_count_and_order(distribution):
    replicas = []
    for backend in BACKENDS_HERE:
        for threads in (1, 2):
            for entries in (ENTRIES, ENTRIES[::-1]):
                replica = make_replica(distribution, backend, threads)
                replica.add(entries)
                replicas.append(replica)
    one_by_one = make_replica(distribution)
    for entry in ENTRIES:
        one_by_one.add([entry])
    golden = dict(line.split() for line in (GOLDEN / "digests.txt").read_text().splitlines() if line[0] != "#")
    assert one_digest([*replicas, one_by_one]) == golden[distribution]


entries_of = st.lists(
    st.builds(Entry, st.sampled_from([0, 1, 5, 2**64 - 1]), st.integers(-(2**41), 2**41)), min_size=1, max_size=8
)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(Distribution), entries_of, st.data())
def test_state_is_a_function_of_the_totals(distribution, entries, data):
    shuffled = data.draw(st.permutations(entries))
    cut = data.draw(st.integers(0, len(entries)))
    straight, parts = make_replica(distribution), make_replica(distribution)
    straight.add(entries)
    parts.add(shuffled[:cut])
    parts.add(shuffled[cut:])
    assert straight.digest() == parts.digest()
    untouched = make_replica(distribution)
    parts.add([Entry(seed, -coefficient) for seed, coefficient in entries])
    assert parts.digest() == untouched.digest()
    assert parts.totals == {}


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(Distribution), entries_of, entries_of)
def test_overlay_gives_the_weights_that_a_commit_gives(distribution, committed, steps):
    over, done = make_replica(distribution), make_replica(distribution)
    over.add(committed)
    done.add([*committed, *steps])
    totals: dict[int, int] = {}
    for seed, coefficient in steps:
        totals[seed] = totals.get(seed, 0) + coefficient
    before = over.digest()
    increments = over.increments([over.overlay(totals)])
    for tensor, spec in enumerate(over.manifest):
        out = torch.empty(1, spec.size)
        over.materialise([tensor], [0], increments, out)
        assert torch.equal(out.reshape(spec.shape), done.weights(tensor))
    assert over.digest() == before


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(Distribution),
    st.sampled_from(BACKENDS_HERE),
    st.lists(st.integers(1, 5000), min_size=1, max_size=8),
)
def test_any_chunking_gives_the_same_state(distribution, backend, pieces):
    whole, chunked = make_replica(distribution), make_replica(distribution)
    whole.add(ENTRIES[3:])
    terms = [Term(seed, 0, coefficient) for seed, coefficient in ENTRIES[3:]]
    for tensor, state in enumerate(chunked.state.split([spec.size for spec in chunked.manifest])):
        steps = Increments(distribution, chunked.manifest.exponents, [terms]).of([tensor])
        bounds = [bound for bound in accumulate(pieces) if bound < state.numel()]
        for low, high in zip([0, *bounds], [*bounds, state.numel()], strict=True):
            backend_for_cpu(backend).commit(state, [Segment(0, low, high - low, low, 0)], steps, 2)
    assert chunked.digest() == whole.digest()


def test_updates_below_one_unit_arrive_in_the_mean():
    """lr 1e-7 on a tensor with max|w| 512: most steps round to nothing, and none is lost on average."""
    exponent = exponent_for(512.0)
    coefficient = round(1e-7 * 2**40)
    asked = coefficient * 2.0 ** (exponent - 40)
    assert asked < 0.2
    for distribution, seeds in ((Distribution.RADEMACHER, 40_000), (Distribution.GAUSSIAN, 8_000)):
        z = distribution.values / 2.0**distribution.fraction_bits
        parts = []
        for first in range(0, seeds, 1000):
            lane = [Term(seed, 0, coefficient) for seed in range(first, first + 1000)]
            steps = Increments(distribution, np.array([exponent]), [lane]).of([0]).tables[0, :, 0]
            parts.append((steps * z).mean(axis=1) / (z**2).mean() / asked)
        arrived = np.concatenate(parts)
        error = arrived.std() / seeds**0.5
        assert abs(arrived.mean() - 1) < 4 * error
        assert error < 0.03


@pytest.mark.parametrize(
    ("largest", "exponent"), [(0.0, 29), (1.0, 29), (1.0000001, 28), (2.0, 28), (512.0, 20), (513.0, 19), (2.0**20, 9)]
)
def test_exponents(largest, exponent):
    assert exponent_for(largest) == exponent


def test_rounding_to_integers_is_half_to_even_in_float64():
    weight = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5], dtype=torch.float64) * 2.0**-29
    (found,) = quantised(weight, describe_tensor("w", weight).exponent)
    assert found.tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), r"'w'.*nan.*index 2"), (float("inf"), r"'w'.*inf"), (2.0**20 * 1.5, r"'w'.*2\^20")],
)
def test_weights_that_cannot_be_represented_are_refused_by_name(value, message):
    with pytest.raises(CheckpointError, match=message):
        describe_tensor("w", torch.tensor([1.0, 2.0, value]))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_parameters_that_are_not_real_floats_are_refused(dtype):
    with pytest.raises(CheckpointError, match="'w'"):
        describe_tensor("w", torch.ones(3, dtype=dtype))


def edit_checkpoint(source: str, target: Path, change) -> str:
    """A copy of a checkpoint with its tensors changed."""
    shutil.copytree(source, target)
    weights = target / "model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights, metadata={"format": "pt"})
    return str(target)


def test_a_checkpoint_with_nan_or_a_missing_tensor_is_refused_by_name(tiny_model, tmp_path):
    def poison(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = float("nan")

    poisoned = edit_checkpoint(tiny_model, tmp_path / "nan", poison)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*nan"):
        Replica.from_base(load_base(poisoned), Distribution.RADEMACHER)
    lacking = edit_checkpoint(tiny_model, tmp_path / "lack", lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"lacks 'lm_head\.weight'"):
        load_base(lacking)
    with pytest.raises(CheckpointError, match="nowhere"):
        load_base(str(tmp_path / "nowhere"))
    (tmp_path / "lack" / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_base(str(tmp_path / "lack"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_float_type_loads_as_stored(tiny_model, tmp_path, dtype):
    def cast(tensors):
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})

    source = edit_checkpoint(tiny_model, tmp_path / "cast", cast)
    base = load_base(source)
    stored = load_file(Path(source) / "model.safetensors")
    loaded = unique_parameters(base.model)
    assert {p.dtype for p in loaded.values()} == {dtype}
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)
    replica = Replica.from_base(base, Distribution.RADEMACHER)
    for tensor, spec in enumerate(replica.manifest):
        expected = stored[spec.name].double()
        assert (replica.weights(tensor).double() - expected).abs().max() <= 2.0 ** -(spec.exponent + 1) + 2.0**-24


def test_mixed_float_types_lose_nothing(tiny_model, tmp_path):
    def mix(tensors):
        for number, name in enumerate(sorted(tensors)):
            tensors[name] = tensors[name].to([torch.bfloat16, torch.float16, torch.float32][number % 3])

    source = edit_checkpoint(tiny_model, tmp_path / "mixed", mix)
    stored = load_file(Path(source) / "model.safetensors")
    loaded = unique_parameters(load_base(source).model)
    assert all(torch.equal(loaded[name].double(), stored[name].double()) for name in stored)


def test_sharded_and_single_checkpoints_are_the_same_base(tiny_model, tmp_path):
    base = load_base(tiny_model)
    base.model.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert load_base(str(tmp_path / "sharded")).digest == base.digest


def test_base_digest_sees_any_weight_and_type(tiny_model):
    model = load_base(tiny_model).model
    before = base_digest(model)
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1
    assert base_digest(model) != before
    assert base_digest(model.to(torch.bfloat16)) != base_digest(model.to(torch.float32))


def test_a_tied_weight_is_one_tensor_under_the_least_of_its_names(stories):
    base = load_base(stories)
    names = list(unique_parameters(base.model))
    assert "lm_head.weight" in names
    assert "model.embed_tokens.weight" not in names
    assert names == sorted(names)
    assert Replica.from_base(base, Distribution.RADEMACHER).manifest.elements == 260_032


def guard_of(max_abs: int, distribution=Distribution.RADEMACHER) -> RangeGuard:
    manifest = Manifest((TensorSpec("small", (4,), 29, 5), TensorSpec("w", (4,), 29, max_abs)))
    return RangeGuard(manifest, distribution)


def test_range_guard_refuses_by_the_tensors_name_and_never_lets_the_state_out():
    guard = guard_of(2**29)
    room = (2**30 - 2**29) << 11
    guard.check([Entry(1, room - 2048)])
    with pytest.raises(RangeGuardError, match="'w'"):
        guard.check([Entry(1, room + 2048)])
    with pytest.raises(RangeGuardError, match="'w'"):
        guard.check([Entry(1, room // 2), Entry(2, -room // 2 - 4096)])


def test_huge_entries_whose_sum_leaves_64_bits_are_refused():
    guard = RangeGuard(Manifest((TensorSpec("w", (4,), 32, 2**20),)), Distribution.RADEMACHER)
    for count in (1, 1024, 2048):
        with pytest.raises(RangeGuardError, match="tensor 'w'"):
            guard.check([Entry(seed, 2**61) for seed in range(count)])


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(Distribution), st.lists(entries_of, min_size=1, max_size=6), st.integers(0, 5))
def test_what_the_range_guard_bounds_is_bounded(distribution, rounds, measured_at):
    from fedzo.journal import Commit, Record

    replica = make_replica(distribution)
    guard = RangeGuard(replica.manifest, distribution)
    for number, entries in enumerate(rounds):
        maxima = replica.maxima() if number == measured_at else None
        record = Record(number + 1, Commit(tuple(entries), 1.0, ()), None, maxima)
        try:
            guard.check(record.entries, maxima)
        except RangeGuardError:
            continue
        guard.apply(record)
        replica.add(entries)
        assert all(most <= 2**30 for most in replica.maxima())
        assert all(
            most <= bound for most, bound in zip(replica.maxima(), (guard._maxima + guard._used).tolist(), strict=True)
        )
    assert guard.totals == replica.totals


def test_a_perturbation_that_could_wrap_is_refused():
    guard = guard_of(2**29)
    guard.check_perturbation(round(1e-3 * 2**40))
    with pytest.raises(RangeGuardError, match="perturbation"):
        guard.check_perturbation(3 * 2**40)
