"""CPU kernels in numba: compiled once, cached on disk, run on several threads without the GIL.

A block of Philox words is a hundred cycles and serves 128 Rademacher elements, so the kernels run at memory
speed: they read the integers once, keep a group of blocks in cache while every seed and lane is added, and write
once. Threads are our own: numba's layers either add seconds of compilation or must not be entered twice.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedzo.noise.backends import Scales
from fedzo.noise.directions import Distribution
from fedzo.noise.increments import Segment, StepTables
from fedzo.noise.numba_kernels import (
    add_bits,
    add_masked_bits,
    add_masked_quantiles,
    add_quantiles,
    decode_bfloat16,
    decode_float16,
    decode_levels,
    fill_words,
    kernel,
    load,
    store_added,
    store_bits,
    store_masked_bits,
    store_scaled,
)

_I32 = np.int32

_ALIKE, _APART = 1, 2
"""How a seed moves a tensor: alike in all lanes, which is added once, or in each its own way; 0 where it does not."""
_BFLOAT16, _FLOAT16, _LEVELS = 0, 1, 2
"""Of a copy."""

_GROUP = 4096
"""Elements worked on at a time: integers of a few lanes stay in the first-level cache."""
_PARALLEL = 1 << 16
"""Below this many elements a second thread costs more than it brings."""


class _Given(NamedTuple):
    """What both kernels work on: the state, segments of it, and what to add to them."""

    state: NDArray[np.int32]
    segments: NDArray[np.int64]
    """[segments, 5]: the fields of `Segment`."""
    tensors: NDArray[np.int64]
    gaussian: bool
    seeds: NDArray[np.uint64]
    ways: NDArray[np.uint8]
    """[tensors, seeds]: 0, `_ALIKE` or `_APART`."""
    tables: NDArray[np.int32]
    mask: NDArray[np.uint32]
    """Empty where everything is touched."""
    mask_starts: NDArray[np.int64]


@kernel
def _sum_group(way, but, values, offset, first, k, given, words, totals):
    """totals[lane, offset:] = values + what seeds add in one way, for a group of segment k that starts at `first`.

    The seed `but` is left out.
    """
    gaussian, mask, row = given.gaussian, given.mask, given.segments[k, 0]
    per_block = 8 if gaussian else 128
    used = words[: 4 * ((offset + values.shape[0] + per_block - 1) // per_block)]
    for lane in range(totals.shape[0]):
        load(values, totals[lane, offset:])
    own = np.empty(_GROUP // 32 if mask.shape[0] else 0, np.uint32)
    if mask.shape[0]:
        for q in range(offset // 32, (offset + values.shape[0] + 31) // 32):
            own[q] = mask[given.mask_starts[k] + first // 32 + q]
    for s in range(given.seeds.shape[0]):
        if given.ways[row, s] != way or s == but:
            continue
        fill_words(first // per_block, given.tensors[row], 1 if gaussian else 0, given.seeds[s], used)
        for lane in range(totals.shape[0]):
            total, table = totals[lane], given.tables[row, s, lane]
            if gaussian and mask.shape[0]:
                add_masked_quantiles(total, used, own, table)
            elif gaussian:
                add_quantiles(total, used, table)
            elif mask.shape[0]:
                add_masked_bits(total, used, own, table[0], _I32(table[1] - table[0]))
            else:
                add_bits(total, used, table[0], _I32(table[1] - table[0]))


@kernel
def _words_of_group(given):
    return np.empty(_GROUP // (2 if given.gaussian else 32), np.uint32)


@kernel
def _within(low, high, passed, start, size):
    """Which elements of a segment lie in low..high−1 of all segments laid end to end, `passed` before it."""
    return start + max(low - passed, 0), start + min(high - passed, size)


@kernel
def _commit(low, high, given):
    """Elements low..high−1 of the segments laid end to end."""
    words, totals = _words_of_group(given), np.zeros((1, _GROUP), np.int32)
    passed = 0
    for k in range(given.segments.shape[0]):
        _, start, size, source, _ = given.segments[k]
        begin, stop = _within(low, high, passed, start, size)
        passed += size
        if begin >= stop:
            continue
        for first in range(begin - begin % _GROUP, stop, _GROUP):
            a, b = max(first, begin), min(first + _GROUP, stop)
            part = given.state[source + a - start : source + b - start]
            _sum_group(_ALIKE, -1, part, a - first, first, k, given, words, totals)
            load(totals[0, a - first : b - first], part)


@kernel
def _store_group(values, words, mask, mask_word, table, scale, out):
    """A whole group that one seed moves."""
    difference = _I32(table[1] - table[0])
    if mask.shape[0]:
        own = mask[mask_word : mask_word + _GROUP // 32]
        store_masked_bits(values, words, own, table[0], difference, scale, out)
    else:
        store_bits(values, words, table[0], difference, scale, out)


@kernel
def _count(ways, way):
    """How many seeds move a tensor in this way, and the last that does."""
    count, last = 0, 0
    for s in range(ways.shape[0]):
        if ways[s] == way:
            count, last = count + 1, s
    return count, last


@kernel
def _materialise(low, high, given, scales, out, stride):
    """As `_commit`. `out` is flat, a lane every `stride` elements: rows of a 2-D slice would not vectorise."""
    lanes = given.tables.shape[2]
    words, common, totals = _words_of_group(given), np.zeros((1, _GROUP), np.int32), np.zeros((lanes, _GROUP), np.int32)
    passed = 0
    for k in range(given.segments.shape[0]):
        row, start, size, source, target = given.segments[k]
        begin, stop = _within(low, high, passed, start, size)
        passed += size
        if begin >= stop:
            continue
        alike, last_alike = _count(given.ways[row], _ALIKE)
        apart, last_apart = _count(given.ways[row], _APART)
        for first in range(begin - begin % _GROUP, stop, _GROUP):
            a, b = max(first, begin), min(first + _GROUP, stop)
            offset = a - first
            values = given.state[source + a - start : source + b - start]
            single = not given.gaussian and values.shape[0] == _GROUP and (apart == 1 or (apart == 0 and alike > 0))
            only = last_apart if apart else last_alike
            but = only if single and not apart else -1
            if alike > (but >= 0):
                _sum_group(_ALIKE, but, values, offset, first, k, given, words, common)
                values = common[0, offset : b - first]
            if single:
                fill_words(first // 128, given.tensors[row], 0, given.seeds[only], words)
            elif apart:
                _sum_group(_APART, -1, values, offset, first, k, given, words, totals)
            for lane in range(lanes):
                made = out[lane * stride + target + a - start : lane * stride + target + b - start]
                if single:
                    mask_word = given.mask_starts[k] + first // 32
                    _store_group(values, words, given.mask, mask_word, given.tables[row, only, lane], scales[row], made)
                elif apart:
                    store_scaled(totals[lane, offset : b - first], scales[row], made)
                else:
                    store_scaled(values, scales[row], made)


class _Copy(NamedTuple):
    """Of the weights at an anchor."""

    values: NDArray[Any]
    """uint16 bits of bfloat16 or float16, or int8 levels; sources of segments count them."""
    kind: int
    """`_BFLOAT16`, `_FLOAT16` or `_LEVELS`."""
    scales: NDArray[np.float32]
    """Of the rows of levels."""
    starts: NDArray[np.int64]
    """First scale of each of the tables' tensors."""
    widths: NDArray[np.int64]
    """Elements of a row of each."""


@kernel
def _decode(copy, row, first, values, bits, decoded, work):
    """float32 of part of a tensor's copy, from element `first` on; `bits` are those of `decoded`, `work` is as long."""
    if copy.kind == _BFLOAT16:
        decode_bfloat16(values, bits)
    elif copy.kind == _FLOAT16:
        decode_float16(values, bits, decoded, work)
    else:
        width, low = copy.widths[row], 0
        while low < decoded.shape[0]:
            index = (first + low) // width
            high = min(decoded.shape[0], (index + 1) * width - first)
            decode_levels(values[low:high], copy.scales[copy.starts[row] + index], decoded[low:high])
            low = high


@kernel
def _materialise_copies(low, high, given, copy, scales, out, stride):
    """As `_materialise`; what is given as state are a group's zeros, to which increments are added."""
    lanes = given.tables.shape[2]
    words, common, totals = _words_of_group(given), np.zeros((1, _GROUP), np.int32), np.zeros((lanes, _GROUP), np.int32)
    decoded, work = np.empty(_GROUP, np.float32), np.empty(_GROUP, np.float32)
    bits = decoded.view(np.uint32)
    passed = 0
    for k in range(given.segments.shape[0]):
        row, start, size, source, target = given.segments[k]
        begin, stop = _within(low, high, passed, start, size)
        passed += size
        if begin >= stop:
            continue
        for first in range(begin - begin % _GROUP, stop, _GROUP):
            a, b = max(first, begin), min(first + _GROUP, stop)
            offset = a - first
            values, count = copy.values[source + a - start : source + b - start], b - a
            _decode(copy, row, a, values, bits[:count], decoded[:count], work[:count])
            _sum_group(_ALIKE, -1, given.state[:count], offset, first, k, given, words, common)
            _sum_group(_APART, -1, common[0, offset : b - first], offset, first, k, given, words, totals)
            for lane in range(lanes):
                made = out[lane * stride + target + a - start : lane * stride + target + b - start]
                store_added(decoded[:count], totals[lane, offset : b - first], scales[row], made)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="fedzo-noise")


def _in_parallel(segments: Sequence[Segment], threads: int, work: Callable[[int, int], None]) -> None:
    """Call `work` on ranges that cover the elements of the segments, at most `threads` at once."""
    elements = sum(segment.size for segment in segments)
    workers = min(threads, elements // _PARALLEL)
    if workers <= 1:
        work(0, elements)
        return
    bounds = [elements * k // workers for k in range(workers + 1)]
    pending = [_pool(threads - 1).submit(work, low, high) for low, high in pairwise(bounds[1:])]
    work(0, bounds[1])
    for future in pending:
        future.result()


class NumbaBackend:
    """See `NoiseBackend` and `CopyBackend`."""

    name = "numba"
    casts = False

    def commit(self, state: torch.Tensor, segments: Sequence[Segment], steps: StepTables, threads: int) -> None:
        """See `NoiseBackend.commit`."""
        given = _given(state, segments, steps, alone=True)
        _in_parallel(segments, threads, lambda low, high: _commit(low, high, given))

    def materialise(
        self,
        state: torch.Tensor,
        segments: Sequence[Segment],
        steps: StepTables,
        out: torch.Tensor,
        threads: int,
    ) -> None:
        """See `NoiseBackend.materialise`."""
        if out.numel() == 0:  # its rows have no stride to flatten them by
            return
        given, units, (flat, stride) = _given(state, segments, steps), _units(steps), _flat(out)
        _in_parallel(segments, threads, lambda low, high: _materialise(low, high, given, units, flat, stride))

    def materialise_copies(
        self,
        copy: torch.Tensor,
        segments: Sequence[Segment],
        steps: StepTables,
        out: torch.Tensor,
        threads: int,
        scales: Scales | None = None,
    ) -> None:
        """See `CopyBackend.materialise_copies`."""
        if out.numel() == 0:
            return
        nothing = torch.zeros(_GROUP, dtype=torch.int32)
        given, units, (flat, stride) = _given(nothing, segments, steps), _units(steps), _flat(out)
        read = _copy(copy, scales)
        _in_parallel(
            segments, threads, lambda low, high: _materialise_copies(low, high, given, read, units, flat, stride)
        )


def _units(steps: StepTables) -> NDArray[np.float32]:
    """What an integer of each tensor stands for."""
    units: NDArray[np.float32] = np.ldexp(np.float32(1), -steps.exponents)
    return units


def _flat(out: torch.Tensor) -> tuple[NDArray[np.float32], int]:
    """Lanes end to end, and how far apart they begin."""
    stride = out.stride(0)
    return out.as_strided(((out.shape[0] - 1) * stride + out.shape[1],), (1,)).numpy(), stride


def _copy(copy: torch.Tensor, scales: Scales | None) -> _Copy:
    levels = copy.dtype is torch.int8
    return _Copy(
        values=copy.numpy() if levels else copy.view(torch.int16).numpy().view(np.uint16),
        kind=_LEVELS if levels else _FLOAT16 if copy.dtype is torch.float16 else _BFLOAT16,
        scales=np.empty(0, np.float32) if scales is None else scales.values.numpy(),
        starts=np.array([] if scales is None else scales.starts, dtype=np.int64),
        widths=np.array([] if scales is None else scales.widths, dtype=np.int64),
    )


def _given(state: torch.Tensor, segments: Sequence[Segment], steps: StepTables, *, alone: bool = False) -> _Given:
    """What the kernels work on; `alone` takes lane 0 for the only one."""
    mask = steps.mask
    return _Given(
        state=state.numpy(),
        segments=np.array(segments, dtype=np.int64),
        tensors=steps.tensors,
        gaussian=steps.distribution is Distribution.GAUSSIAN,
        seeds=steps.seeds,
        ways=np.where(alone | steps.alike, np.uint8(_ALIKE), np.uint8(_APART)) * steps.moves,
        tables=steps.tables,
        mask=np.empty(0, np.uint32) if mask is None else mask.words.numpy().view(np.uint32),
        mask_starts=np.array([0] * len(segments) if mask is None else mask.starts, dtype=np.int64),
    )


BACKEND = NumbaBackend()
