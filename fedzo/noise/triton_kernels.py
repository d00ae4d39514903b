"""One GPU kernel makes weights, and commits, from integers or from a compute copy; where there is no GPU it runs on CPU
tensors in Triton's interpreter.

A launch serves a whole list of segments. A program owns one group of elements: it reads their integers once, adds
every seed and lane in registers and writes once, so a replay of many entries costs one pass over the state. Groups
begin at multiples of their size in the tensor, so a program makes whole Philox blocks wherever a segment starts.
Steps are integer arithmetic modulo 2³². Each operation on floats rounds by itself (docs/numerics.md): launches ask for
no fused multiply-add. Weights are cast as they are written, so that a 16-bit weight never crosses memory in 32.

Whether it is compiled or interpreted is settled when triton is imported: TRITON_INTERPRET=1 must be set by then.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime.interpreter import InterpretedFunction

from fedzo.errors import ConfigError
from fedzo.noise.backends import Scales
from fedzo.noise.directions import Distribution
from fedzo.noise.increments import Segment, StepTables
from fedzo.noise.philox import ROUNDS

GROUP = 4096
"""Elements of a program times its lanes: what its registers hold."""
_LANES_AT_ONCE = 4
"""Lanes that share the noise a program makes; further lanes are further programs."""
_ALIGNED_BYTES = 16
"""What a table in the memory of a launch begins at a multiple of."""
RUN = 32
"""Elements that lie together; those of a Rademacher word."""

_RUN = tl.constexpr(RUN)
_COLUMNS = tl.constexpr(8)
_ROUNDS = tl.constexpr(ROUNDS)


@triton.jit
def _find(places, levels):
    """The row of `places` (see `_places`) that this program works in, by bisection in 2^levels rows."""
    program = tl.program_id(0)
    place = places
    for level in range(levels):
        later = place + (1 << (levels - 1 - level)) * _COLUMNS
        place = tl.where(tl.load(later) <= program, later, place)
    return place


@triton.jit
def _words(seed, block, tensor, tag: tl.constexpr):
    """Philox words of blocks int64[n], in order: uint32[4 n]."""
    c0, c1 = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    c2, c3 = tl.full(block.shape, 0, tl.uint32) + tensor.to(tl.uint32), tl.full(block.shape, tag, tl.uint32)
    x0, x1, x2, x3 = tl.philox(seed, c0, c1, c2, c3, _ROUNDS)
    return tl.interleave(tl.interleave(x0, x2), tl.interleave(x1, x3))


@triton.jit
def _steps(words, table, valid, gaussian: tl.constexpr):
    """What a seed adds: int32[lanes, words, elements of a word]. `table` points to each lane's steps, [lanes, 1, 1]."""
    word = words[None, :, None]
    if gaussian:
        half = tl.arange(0, 2).to(tl.uint32)[None, None, :]
        added = tl.load(table + ((word >> (half * 16 + 4)) & 0xFFF), mask=valid, other=0)
    else:
        bit = (word >> tl.arange(0, 32).to(tl.uint32)[None, None, :]) & 1
        plus, minus = tl.load(table, mask=valid, other=0), tl.load(table + 1, mask=valid, other=0)
        added = tl.where(bit == 0, plus, minus)
    return added


@triton.jit
def _cast(value, out):
    """float32 to what `out` points to, nearest-even; by integers for bfloat16, which the interpreter would truncate."""
    if out.dtype.element_ty == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        cast = rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        cast = value.to(out.dtype.element_ty)
    return cast


@triton.jit
def make(
    source,
    mask,
    row_scales,
    out,
    stride,
    places,
    rows,
    seeds,
    tables,
    scales,
    levels,
    seed_count,
    lane_count,
    group: tl.constexpr,
    lanes: tl.constexpr,
    gaussian: tl.constexpr,
    masked: tl.constexpr,
    kind: tl.constexpr,
    aligned: tl.constexpr,
):
    """One group of elements in some lanes: source + Σ steps to `out`.

    `kind` says what the source is: integers that stay integers (0) or are scaled to floats (1), a copy in floats (2) or
    in levels of a row (3). `rows` has the width and the first scale of each of the tables' tensors. `aligned` says that
    segments begin and end, in the tensor and in memory, and rows end, at multiples of `RUN`: then several elements are
    read and written at once, and a word is in one row.
    """
    per_word: tl.constexpr = 2 if gaussian else 32
    run: tl.constexpr = _RUN if aligned else 1
    symbols: tl.constexpr = 4096 if gaussian else 2
    place = _find(places, levels)
    row, tensor = tl.load(place + 1), tl.load(place + 2)
    start, stop = tl.multiple_of(tl.load(place + 3), run), tl.multiple_of(tl.load(place + 4), run)
    first = (start // group + tl.program_id(0) - tl.load(place)) * group

    lane = tl.program_id(1) * lanes + tl.arange(0, lanes)[:, None, None]
    valid = lane < lane_count
    word = tl.arange(0, group // per_word)[None, :, None]
    element = first + word * per_word + tl.arange(0, per_word)[None, None, :]
    inside = (element >= start) & (element < stop)

    total = tl.zeros([lanes, group // per_word, per_word], tl.int32)
    block = first // (4 * per_word) + tl.arange(0, group // (4 * per_word))
    for s in range(seed_count):
        words = _words(tl.load(seeds + s), block, tensor, 1 if gaussian else 0)
        table = tables + ((row * seed_count + s) * lane_count + lane) * symbols
        total += _steps(words, table, valid, gaussian)
    if masked:
        bits = tl.load(mask + tl.load(place + 7) + element // 32, mask=inside, other=0)
        total = tl.where((bits >> (element & 31).to(tl.int32)) & 1 != 0, total, 0)

    value = tl.load(source + tl.multiple_of(tl.load(place + 5), run) + element, mask=inside, other=0)
    target = out + tl.multiple_of(tl.load(place + 6), run) + element + lane.to(tl.int64) * stride
    if kind == 0:
        tl.store(target, total + value, mask=inside & valid)
    elif kind == 1:
        tl.store(target, _cast((total + value).to(tl.float32) * tl.load(scales + row), out), mask=inside & valid)
    else:
        value = value.to(tl.float32)
        if kind == 3:
            scaled = first + word * per_word if aligned else element
            scale = row_scales + tl.load(rows + 2 * row + 1) + scaled // tl.load(rows + 2 * row)
            value = value * tl.load(scale, mask=(scaled >= start) & (scaled < stop), other=0)
        made = value + total.to(tl.float32) * tl.load(scales + row)
        tl.store(target, _cast(made, out), mask=inside & valid)


INTERPRETED = isinstance(make, InterpretedFunction)
"""The kernel runs on the CPU."""


def launch(
    source: torch.Tensor,
    segments: Sequence[Segment],
    steps: StepTables,
    out: torch.Tensor,
    lanes: int,
    scales: Scales | None = None,
) -> None:
    """Add the increments of the first `lanes` lanes to the segments of `source`, into `out` [lanes, …].

    Args:
        source: int32 integers of the state, or a copy: float16, bfloat16 or int8. Segments count its elements.
        segments: what to make.
        steps: what to add.
        out: int32 for integers that stay integers; else float32, float16 or bfloat16, rows contiguous.
        lanes: of the steps.
        scales: of a copy in int8.

    Raises:
        ConfigError: the tensors are not where the kernel can run.
    """
    if not (source.is_cuda or INTERPRETED):
        raise ConfigError(
            f"noise backend 'triton' got tensors on device {str(source.device)!r}, expected 'cuda': its kernels are "
            "compiled for the GPU; use another backend, or set TRITON_INTERPRET=1 to run them slowly on the CPU"
        )
    together = min(triton.next_power_of_2(lanes), _LANES_AT_ONCE)
    group = GROUP // together
    places, groups = _places(segments, steps, group)
    if groups == 0:
        return
    rows = [(1, 0)] if scales is None else list(zip(scales.widths, scales.starts, strict=True))
    units = np.ldexp(np.float32(1), -steps.exponents)
    arrays = (places, np.array(rows, dtype=np.int64), steps.seeds.view(np.int64), steps.tables, units)
    tables = _sent(arrays, source.device)
    integers = source.dtype is torch.int32
    with torch.cuda.device_of(source):
        make[groups, triton.cdiv(lanes, together)](
            source,
            source if steps.mask is None else steps.mask.words,
            tables[-1] if scales is None else scales.values,
            out,
            out.stride(0),
            *tables,
            len(places).bit_length() - 1,
            len(steps.seeds),
            steps.lanes,
            group=group,
            lanes=together,
            gaussian=steps.distribution is Distribution.GAUSSIAN,
            masked=steps.mask is not None,
            kind=int(out.dtype is not torch.int32) if integers else 2 + (scales is not None),
            aligned=_aligned(places, rows, out),
            enable_fp_fusion=False,
        )


def _places(segments: Sequence[Segment], steps: StepTables, group: int) -> tuple[NDArray[np.int64], int]:
    """Where each segment lies, one row a segment, filled up to a power of two, and the number of groups in all.

    Columns: number of its first group, row of the step tables, tensor, first element, one past the last, where the
    tensor's element 0 would lie in the source and in a lane's output, and word 0 of its mask. A filler's first group
    is never reached.
    """
    rows, groups = [], 0
    words = [0] * len(segments) if steps.mask is None else steps.mask.starts
    for (row, start, size, source, target), word in zip(segments, words, strict=True):
        if size == 0:
            continue
        stop = start + size
        rows.append((groups, row, steps.tensors[row], start, stop, source - start, target - start, word))
        groups += -(-stop // group) - start // group
    filler = [(groups, *[0] * 7)] * (triton.next_power_of_2(len(rows)) - len(rows))
    return np.array(rows + filler, dtype=np.int64), groups


def _aligned(places: NDArray[np.int64], rows: Sequence[tuple[int, int]], out: torch.Tensor) -> bool:
    """Everything begins and ends at a multiple of `RUN` (see `make`)."""
    others = [width for width, _ in rows if width > 1] + ([out.stride(0)] if out.shape[0] > 1 else [])
    return not (places[:, 3:7] % RUN).any() and all(size % RUN == 0 for size in others)


def _sent(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> list[torch.Tensor]:
    """Small tables on a device, in one copy for which the host does not wait."""
    sizes = [-(-array.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES for array in arrays]
    here = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    tables = [torch.from_numpy(np.ascontiguousarray(array)).reshape(-1) for array in arrays]
    for part, table in zip(torch.split(here, sizes), tables, strict=True):
        part[: table.nbytes] = table.view(torch.uint8)
    there = torch.split(here.to(device, non_blocking=True), sizes)
    return [part[: table.nbytes].view(table.dtype) for part, table in zip(there, tables, strict=True)]
