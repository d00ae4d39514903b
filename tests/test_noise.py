"""Directions and integer steps: known answers, golden vectors, and equality of the backends."""

from dataclasses import replace
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers import BACKENDS_HERE, backend_for_cpu, run_python
from hypothesis import given, settings
from hypothesis import strategies as st

from fedzo.base.initial_weights import normal_values
from fedzo.errors import ConfigError
from fedzo.methods.fedkseed_pro import EXPONENTIALS
from fedzo.noise import Distribution, Increments, Mask, Segment, Term, get_backend
from fedzo.noise.directions import GAUSSIAN_TABLE, dither, symbols
from fedzo.noise.draws import (
    choose_cohort,
    derived_seeds,
    derived_seeds_of_clients,
    epoch_order,
    fault_draws,
    partition_order,
    partitioner_seed,
    pool_choices,
    pool_seeds,
    weighted_choices,
)
from fedzo.noise.increments import rounded_steps
from fedzo.noise.philox import philox4x32

GOLDEN = Path(__file__).parent / "golden"
SEEDS = (0, 1, 0x0123456789ABCDEF, 2**64 - 1)
ENDS = list(accumulate(EXPONENTIALS))


def golden_lines(name: str) -> list[str]:
    """The lines of a golden file, without comments."""
    return [line for line in (GOLDEN / name).read_text().splitlines() if not line.startswith("#")]


def test_philox_has_random123s_known_answers():
    lines = golden_lines("philox.txt")
    assert len(lines) == 3
    for line in lines:
        words = [int(word, 16) for word in line.split()]
        assert philox4x32(tuple(words[:4]), tuple(words[4:6])).tolist() == words[6:]


def direction_lines() -> list[str]:
    """First elements of directions, as the golden file has them."""
    made = []
    for distribution in Distribution:
        for seed in SEEDS:
            for tensor, start in ((0, 0), (3, 1000), (70000, 2**33 + 5)):
                values = distribution.values[symbols(distribution, seed, tensor, start, start + 16)]
                made.append(f"{distribution} {seed} {tensor} {start} : {' '.join(map(str, values))}")
    return made


def draw_lines() -> list[str]:
    """Every other draw, as the golden file has them."""
    made = []
    for seed in SEEDS:
        made += [
            f"dither {seed} : {' '.join(map(str, dither(np.array([seed], dtype=np.uint64), np.arange(4))[0]))}",
            f"seeds {seed} : {' '.join(map(str, derived_seeds(seed, 7, 3, 3)))}",
            f"cohort {seed} : {' '.join(map(str, choose_cohort(seed, 7, list(range(20)), 5)))}",
            f"epoch {seed} : {' '.join(map(str, epoch_order(seed, 3, 2, 12)))}",
            f"partition {seed} : {' '.join(map(str, partition_order(seed, 12)))}",
            f"faults {seed} : {' '.join(f'{u!r}' for u in fault_draws(seed, 7, 3))}",
            f"pool {seed} : {' '.join(map(str, [*pool_seeds(seed, 2), *pool_choices(seed, 7, 3, 5, 1000)]))}",
            f"weighted {seed} : {' '.join(map(str, weighted_choices(seed, 7, 3, 5, ENDS)))}",
            f"partitioner {seed} : {partitioner_seed(seed)}",
            f"initial {seed} : {' '.join(value.hex() for value in normal_values(seed, 3, 1000, 1005).tolist())}",
        ]
    return made


def step_lines() -> list[str]:
    """Integer steps f(A), as the golden file has them."""
    made = []
    for distribution in Distribution:
        for exponent in (29, 20, 9):
            for total in (1, 12345, -12345, 2**40, -(2**44) - 77):
                lane = [Term(SEEDS[2], 0, total)]
                tables = Increments(distribution, np.array([0, exponent]), [lane]).of([1]).tables[0, 0, 0]
                shown = tables[[0, -1]] if distribution is Distribution.RADEMACHER else tables[[0, 1, 2048, 4095]]
                made.append(f"{distribution} e {exponent} A {total} : {' '.join(map(str, shown))}")
    return made


@pytest.mark.parametrize(
    ("name", "made"), [("directions.txt", direction_lines), ("draws.txt", draw_lines), ("steps.txt", step_lines)]
)
def test_our_own_whole_path_is_as_written_down(name, made):
    """A difference here is a new numerics version, never an accident."""
    assert made() == golden_lines(name)


def test_gaussian_table_is_odd_and_has_unit_variance():
    assert (-GAUSSIAN_TABLE[::-1] == GAUSSIAN_TABLE).all()
    assert abs((GAUSSIAN_TABLE.astype(float) ** 2).mean() / 4096**2 - 1) < 1e-3


@pytest.mark.parametrize("distribution", Distribution)
def test_directions_look_like_their_distribution(distribution):
    values = distribution.values[symbols(distribution, 12, 1, 0, 1 << 18)] / 2.0**distribution.fraction_bits
    assert abs(values.mean()) < 0.01
    assert abs((values**2).mean() - 1) < 0.01
    other = distribution.values[symbols(distribution, 13, 1, 0, 1 << 18)] / 2.0**distribution.fraction_bits
    assert abs((values * other).mean()) < 0.01


@given(st.sampled_from(Distribution), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.data())
def test_any_slice_can_be_made_alone(distribution, seed, tensor, data):
    whole = symbols(distribution, seed, tensor, 0, 700)
    start = data.draw(st.integers(0, 699))
    stop = data.draw(st.integers(start, 700))
    assert (symbols(distribution, seed, tensor, start, stop) == whole[start:stop]).all()


@given(st.sampled_from(Distribution), st.integers(-(2**47), 2**47), st.integers(0, 2**32 - 1), st.integers(9, 29))
def test_a_step_is_odd_in_the_total(distribution, total, drawn, exponent):
    sigma = 40 + distribution.fraction_bits - exponent
    dithers = np.array([drawn], dtype=np.uint32)
    z = int(distribution.values[-1])
    there = rounded_steps(np.array([total]), z, dithers, sigma)
    assert there == -rounded_steps(np.array([-total]), z, dithers, sigma)
    offset = drawn * 2**sigma // 2**32
    magnitude = (abs(total * z) + offset) >> sigma
    assert there == (magnitude if total * z > 0 else -magnitude)


@pytest.mark.parametrize("name", BACKENDS_HERE)
def test_every_backend_makes_the_directions_that_are_written_down(name):
    """With a coefficient of one unit of z an integer step is the direction itself."""
    for line in golden_lines("directions.txt"):
        distribution, seed, tensor, start, _, *expected = line.split()
        unit = 2 ** (40 + Distribution(distribution).fraction_bits - 29)
        lanes = [[Term(int(seed), 0, unit)]]
        steps = Increments(Distribution(distribution), np.full(int(tensor) + 1, 29), lanes).of([int(tensor)])
        state = torch.zeros(len(expected), dtype=torch.int32)
        backend_for_cpu(name).commit(state, [Segment(0, int(start), len(expected), 0, 0)], steps, 1)
        assert state.tolist() == [int(z) for z in expected]


def segments_of(largest: int):
    """(row, first element, size) of some segments."""
    return st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9000), st.integers(0, largest)), min_size=1, max_size=4)


def assert_backends_agree(runs, distribution, parts, seeds, lanes, drawn, *, shared=0, masked=False):
    """Each (backend, threads) must give the integers and weights of the first, for random integers and coefficients.

    Args:
        shared: terms that all lanes have, besides `seeds` of each.
        masked: some elements are left alone.
    """
    random = np.random.default_rng(drawn)
    sizes = [size for _, _, size in parts]
    begins = np.cumsum([0, *sizes])
    segments = [
        Segment(row, start, size, int(begins[k]), int(begins[-1] - begins[k + 1]))
        for k, (row, start, size) in enumerate(parts)
    ]
    state = torch.from_numpy(random.integers(-(2**31), 2**31, int(begins[-1])).astype(np.int32))

    def drawn_terms(count: int) -> list[Term]:
        return [Term(int(random.integers(2**63)), *map(int, random.integers(-(2**40), 2**40, 2))) for _ in range(count)]

    common = drawn_terms(shared)
    terms = [[*common, *drawn_terms(seeds)] for _ in range(lanes)]
    steps = Increments(distribution, np.array([29, 9, 20, 25]), terms).of([1, 3, 2])
    if masked:
        words = np.cumsum([0, *(-(-(start + size) // 32) for _, start, size in parts)])
        bits = random.integers(-(2**31), 2**31, int(words[-1])).astype(np.int32)
        steps = replace(steps, mask=Mask(torch.from_numpy(bits), words[:-1].tolist()))
    found = []
    with patch("fedzo.noise.numba_backend._PARALLEL", 1000):
        for name, threads in runs:
            backend = backend_for_cpu(name)
            out, committed = torch.zeros(lanes, state.numel()), state.clone()
            backend.materialise(state, segments, steps, out, threads)
            backend.commit(committed, segments, steps, threads)
            found.append((out, committed))
    assert all(torch.equal(out, found[0][0]) and torch.equal(done, found[0][1]) for out, done in found)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(Distribution),
    segments_of(9000),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_backends_and_threads_agree_on_any_segments(distribution, parts, seeds, shared, lanes, masked, drawn):
    runs = [("reference", 1), ("numba", 1), ("numba", 2), ("torch", 1)]
    assert_backends_agree(runs, distribution, parts, seeds, lanes, drawn, shared=shared, masked=masked)


@pytest.mark.parametrize("name", BACKENDS_HERE)
def test_a_segment_of_no_elements_adds_nothing(name):
    empty, out = torch.zeros(0, dtype=torch.int32), torch.zeros(2, 0)
    steps = Increments(Distribution.RADEMACHER, np.array([29]), [[Term(5, 0, 2**40)], []]).of([0])
    backend_for_cpu(name).materialise(empty, [Segment(0, 0, 0, 0, 0)], steps, out, 2)
    backend_for_cpu(name).commit(empty, [Segment(0, 0, 0, 0, 0)], steps, 2)
    assert out.shape == (2, 0)
    assert empty.shape == (0,)


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton has no package for this platform")


@needs_triton
@settings(max_examples=30, deadline=None)
@given(st.sampled_from(Distribution), segments_of(5000), st.integers(0, 2), st.integers(1, 6), st.integers(0, 2**32))
def test_triton_agrees_on_any_segments_seeds_and_lanes(distribution, parts, seeds, lanes, drawn):
    """Small, because the interpreter is slow; more lanes than one program serves."""
    assert_backends_agree([("reference", 1), ("triton", 1)], distribution, parts, seeds, lanes, drawn)


@needs_triton
@pytest.mark.parametrize("distribution", Distribution)
def test_triton_agrees_at_the_edges_of_groups_and_blocks(distribution):
    parts = [(0, 4095, 2), (1, 0, 4096), (0, 4096, 1), (2, 127, 4098), (1, 8, 0), (2, 1023, 1025), (0, 1, 7)]
    assert_backends_agree([("reference", 1), ("triton", 1)], distribution, parts, 1, 2, 0)


@pytest.mark.parametrize("name", ["numba", "torch"])
@pytest.mark.parametrize("distribution", Distribution)
def test_backends_agree_where_threads_share_a_large_tensor(name, distribution):
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(-(2**29), 2**29, (300_001,), dtype=torch.int32, generator=generator)
    segments = [Segment(0, 0, 300_001, 0, 0)]
    steps = Increments(distribution, np.array([27]), [[Term(5, 0, 10**9)], [Term(5, 0, -(10**9))]]).of([0])
    out, expected = torch.empty(2, 300_001), torch.empty(2, 300_001)
    get_backend(name).materialise(state, segments, steps, out, 2)
    get_backend("reference").materialise(state, segments, steps, expected, 1)
    assert torch.equal(out, expected)


def test_the_library_works_where_numba_and_triton_are_absent(monkeypatch):
    monkeypatch.setattr("fedzo.noise.backends.find_spec", lambda name: None)
    assert get_backend("auto").name == "torch"
    for name in ("numba", "triton"):
        with pytest.raises(ConfigError, match=f"{name}, which is not installed"):
            get_backend(name)


ON_A_MACHINE_WITHOUT_GPU = """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.pop("TRITON_INTERPRET", None)
"""


@needs_triton
def test_triton_without_a_gpu_is_refused_with_what_to_do():
    script = """
import torch
from fedzo.errors import ConfigError
from fedzo.noise import Distribution, Increments, Segment, get_backend
from fedzo.noise.triton_backend import BACKEND
steps = Increments(Distribution.RADEMACHER, torch.tensor([29]).numpy(), [[]]).of([0])
integers = torch.zeros(4, dtype=torch.int32)
for attempt in (lambda: get_backend("triton"), lambda: BACKEND.commit(integers, [Segment(0, 0, 4, 0, 0)], steps, 1)):
    try:
        attempt()
    except ConfigError as error:
        print(error)
"""
    missing, misplaced = run_python(ON_A_MACHINE_WITHOUT_GPU + script).splitlines()
    assert "needs a CUDA device" in missing
    assert "'cpu'" in misplaced
    assert all("TRITON_INTERPRET=1" in message for message in (missing, misplaced))


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_triton_kernels_compile_for_a_gpu_that_is_not_there(capability, tmp_path):
    """Down to machine code, in the variants that a launch asks for; the one rounding is that of int32 to float32."""
    from triton import knobs

    try:
        knobs.nvidia.ptxas  # noqa: B018
    except RuntimeError as error:
        pytest.skip(f"this triton ships no ptxas, so nothing can be assembled: {error}")
    script = """
import itertools, sys
from triton import compile, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fedzo.noise.triton_kernels import GROUP, make
knobs.cache.dir = sys.argv[2]
types = {"source": "*i32", "stride": "i64", "places": "*i64", "seeds": "*i64", "tables": "*i32", "scales": "*fp32"}
types |= {"levels": "i32", "seed_count": "i32", "lane_count": "i32"}
types |= {"mask": "*i32", "row_scales": "*fp32", "rows": "*i64"}
for gaussian, (lanes, kind) in itertools.product((False, True), ((1, 0), (2, 1), (4, 1))):
    constants = {"group": GROUP // lanes, "lanes": lanes, "gaussian": gaussian, "kind": kind, "masked": lanes == 4}
    constants["aligned"] = lanes == 2
    if lanes == 2:
        constants["seed_count"] = 1  # a launch makes an argument of 1 a constant
    signature = types | {"out": "*fp32" if kind else "*i32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in make.arg_names}
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    made = compile(ASTSource(make, signature, constants), target=target, options={"enable_fp_fusion": False}).asm
    floats = {line.split()[0] for line in made["ptx"].splitlines() if ".f32" in line and ";" in line}
    print(len(made["cubin"]) > 0, *sorted(floats))
"""
    printed = run_python(ON_A_MACHINE_WITHOUT_GPU + script, str(capability), tmp_path).splitlines()
    assert printed == ["True", "True cvt.rn.f32.s32 mul.rn.f32", "True cvt.rn.f32.s32 mul.rn.f32"] * 2


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"'cuda'.*numba"):
        get_backend("cuda")


@pytest.mark.parametrize("seed", SEEDS)
def test_clients_that_draw_together_draw_what_each_would_alone(seed):
    clients = [0, 3, 7, 2**32 - 1]
    assert derived_seeds_of_clients(seed, 7, clients, 3) == [derived_seeds(seed, 7, client, 3) for client in clients]
    assert derived_seeds_of_clients(seed, 7, [], 3) == []


def test_cohorts_are_fair_and_batches_cover_an_epoch():
    asked = np.zeros(20)
    for round_number in range(1, 2001):
        cohort = choose_cohort(9, round_number, list(range(20)), 5)
        assert len(set(cohort)) == 5
        asked[list(cohort)] += 1
    assert np.abs(asked / 500 - 1).max() < 0.15
    assert choose_cohort(9, 1, [2, 5, 7], 3) == choose_cohort(9, 1, [2, 5, 7], 4) == (2, 5, 7)
    assert sorted(epoch_order(1, 2, 3, 100)) == list(range(100))
    assert epoch_order(1, 2, 3, 100).tolist() != epoch_order(1, 2, 4, 100).tolist()


@pytest.mark.parametrize("distribution", Distribution)
def test_a_thread_whose_share_ends_before_a_segment_leaves_it_alone(distribution):
    """A segment that starts inside a group must not be entered by the thread before it."""
    state = torch.arange(139_900, dtype=torch.int32)
    segments = [Segment(0, 0, 70_000, 70_000 - 100, 0), Segment(1, 100, 69_900, 0, 70_000)]
    steps = Increments(distribution, np.array([29, 20]), [[Term(5, 0, 10**9)]]).of([0, 1])
    found = []
    for name in ("numba", "reference"):
        out, committed = torch.zeros(1, 139_900), state.clone()
        get_backend(name).materialise(state, segments, steps, out, 2)
        get_backend(name).commit(committed, segments, steps, 2)
        found.append((out, committed))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
