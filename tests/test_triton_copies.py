"""GPU kernels for 16-bit weights and compute copies, in Triton's interpreter, against the reference."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers import backend_for_cpu, run_python
from test_noise import ON_A_MACHINE_WITHOUT_GPU

from fedzo.base.manifest import Manifest, TensorSpec
from fedzo.noise import Distribution, Increments, Mask, Segment, Term, get_backend
from fedzo.state.compute_copy import CopyFormat

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton has no package for this platform"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tensors here are on the CPU, for the interpreter"),
]
MANIFESTS = [
    Manifest((TensorSpec("a", a, 29, 2**29), TensorSpec("b", b, 20, 2**29)))
    for a, b in (((7, 36), (3, 1400)), ((8, 32), (3, 1440)))
]
MANIFEST = MANIFESTS[0]
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def integers(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-(2**29), 2**29, (size,), dtype=torch.int32, generator=generator)


def steps_of(distribution: Distribution, seeds: int, lanes: int):
    terms = [[Term(11 * lane + s, 0, (s + 1) * 10**9) for s in range(seeds)] for lane in range(lanes)]
    return Increments(distribution, MANIFEST.exponents, terms).of([0, 1])


def test_elements_are_read_together_where_all_begins_and_ends_together():
    from fedzo.noise.triton_kernels import _aligned

    even = np.array([[0, 0, 0, 96, 4320, -96, 224, 0]])
    assert _aligned(even, [(1440, 0)], torch.empty(2, 4640))
    assert not _aligned(even, [(1440, 0)], torch.empty(2, 4641))
    assert not _aligned(even, [(36, 0)], torch.empty(2, 4640))
    for column in range(3, 7):
        assert not _aligned(even + np.eye(8, dtype=int)[column], [(1, 0)], torch.empty(2, 4640))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("distribution", Distribution)
@pytest.mark.parametrize("unit", [1, 32])
def test_weights_are_cast_to_the_nearest_as_they_are_written(unit, distribution, dtype):
    steps = steps_of(distribution, 2, 3)
    size, first, rest, gap = (252, 100, 4000, 5) if unit == 1 else (256, 96, 4064, 32)
    segments = [Segment(0, 0, size, 0, gap), Segment(1, first, rest, size + first, gap + size)]
    state, width = integers(size + first + rest), gap + size + rest
    exact, cast = torch.zeros(3, width), torch.zeros(3, width, dtype=dtype)
    get_backend("reference").materialise(state, segments, steps, exact, 1)
    backend_for_cpu("triton").materialise(state, segments, steps, cast, 1)
    assert torch.equal(cast, exact.to(dtype))


@pytest.mark.parametrize("distribution", Distribution)
def test_what_a_mask_leaves_out_stays_as_it_is(distribution):
    state, steps = integers(MANIFEST.elements), steps_of(distribution, 2, 3)
    words = torch.randint(
        -(2**31), 2**31 - 1, (8 + 132,), dtype=torch.int32, generator=torch.Generator().manual_seed(4)
    )
    steps = replace(steps, mask=Mask(words, [0, 8]))
    segments = [Segment(0, 0, 252, 0, 0), Segment(1, 100, 4000, 352, 252)]
    found = []
    for backend in (get_backend("reference"), backend_for_cpu("triton")):
        out, committed = torch.zeros(3, 4252), state.clone()
        backend.materialise(state, segments, steps, out, 1)
        backend.commit(committed, segments, replace(steps, tables=steps.tables[:, :, :1].copy()), 1)
        found.append((out, committed))
    assert all(map(torch.equal, *found))
    assert 0.4 < (found[0][1] == state).float().mean() < 0.7


@pytest.mark.parametrize("distribution", Distribution)
def test_a_replay_of_many_entries_is_the_references(distribution):
    state, steps = integers(MANIFEST.elements), steps_of(distribution, 40, 1)
    segments = [Segment(0, 0, 252, 0, 0), Segment(1, 0, 4200, 252, 0)]
    committed = state.clone()
    backend_for_cpu("triton").commit(committed, segments, steps, 1)
    get_backend("reference").commit(state, segments, steps, 1)
    assert torch.equal(committed, state)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["bf16", "fp16", "int8"])
@pytest.mark.parametrize("distribution", Distribution)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=["odd", "even"])
def test_weights_from_a_copy_are_the_cpus(manifest, distribution, kind, dtype):
    materialise_copies = get_backend("triton").materialise_copies
    form, steps = CopyFormat(kind, manifest), steps_of(distribution, 2, 3)
    state, (a, b) = integers(manifest.elements), (spec.size for spec in manifest)
    exact = torch.split(state.float() * 2.0**-22, [a, b])
    copies = [
        form.encode(k, part.clone().view(spec.shape))
        for k, (part, spec) in enumerate(zip(exact, manifest, strict=True))
    ]
    element = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}[kind]
    segments = [Segment(0, 0, a, 0, 0), Segment(1, 0, b, a, a)]
    expected = torch.zeros(3, manifest.elements)
    get_backend("reference").materialise(torch.zeros_like(state), segments, steps, expected, 1)
    expected += torch.cat([form.decode(k, copy, 0) for k, copy in enumerate(copies)])
    out = torch.zeros(3, manifest.elements, dtype=dtype)
    scales = form.scales([0, 1])
    materialise_copies(torch.cat(copies).view(element), segments, steps, out, 1, scales)
    assert torch.equal(out, expected.to(dtype))
    part = torch.zeros(3, 960, dtype=dtype)
    materialise_copies(torch.cat(copies).view(element), [Segment(1, 1920, 960, a + 1920, 0)], steps, part, 1, scales)
    assert torch.equal(part, expected[:, a + 1920 : a + 2880].to(dtype))
    assert np.isfinite(part.float().numpy()).all()


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_for_a_gpu_that_is_not_there(capability, tmp_path):
    """Down to machine code, for every kind of copy and of weight; products and sums round by themselves.

    Where elements lie together, four registers are written at once.
    """
    from triton import knobs

    try:
        knobs.nvidia.ptxas  # noqa: B018
    except RuntimeError as error:
        pytest.skip(f"this triton ships no ptxas, so nothing can be assembled: {error}")
    script = """
import sys
from triton import compile, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fedzo.noise.triton_kernels import GROUP, make
knobs.cache.dir = sys.argv[2]
types = {"stride": "i64", "places": "*i64", "rows": "*i64", "seeds": "*i64", "tables": "*i32", "scales": "*fp32"}
types |= {"levels": "i32", "seed_count": "i32", "lane_count": "i32", "row_scales": "*fp32", "mask": "*i32"}
for copy, out, gaussian in (("*i8", "*fp16", False), ("*fp16", "*bf16", True), ("*bf16", "*fp32", False)):
    constants = {"group": GROUP // 2, "lanes": 2, "gaussian": gaussian, "masked": False, "kind": 2 + (copy == "*i8")}
    constants["aligned"] = not gaussian
    signature = types | {"source": copy, "out": out} | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in make.arg_names}
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    whole = [(k,) for k, name in enumerate(make.arg_names) if signature[name][0] == "*" or name == "stride"]
    attributes = {place: [["tt.divisibility", 16]] for place in whole}
    source = ASTSource(make, signature, constants, attributes)
    made = compile(source, target=target, options={"enable_fp_fusion": False}).asm
    floats = {line.split()[0] for line in made["ptx"].splitlines() if ".f32" in line and ";" in line}
    print(len(made["cubin"]) > 0, any("fma" in word for word in floats), {"mul.rn.f32", "add.rn.f32"} <= floats)
    print(gaussian or "st.global.v4" in made["ptx"])
"""
    printed = run_python(ON_A_MACHINE_WITHOUT_GPU + script, str(capability), tmp_path).splitlines()
    assert printed == ["True False True", "True"] * 3
