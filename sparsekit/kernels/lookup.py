"""Kernels for one sample whose inputs are looked up in registers instead of memory.

Where the inputs of single weights are loaded, these loads and what puts them together are all that counts. Byte
permutations look 32 or 64 inputs up at a time. For weights that never change, since their order
(:mod:`sparsekit.kernels.lookup_layout`) takes longer to build than many products.
"""

import math
from functools import partial
from typing import Any

import numba
import numpy as np

from sparsekit.kernels.compiled import compiled, is_parallel, run
from sparsekit.kernels.lookup_layout import SlidingLookup, SortedLookup
from sparsekit.kernels.memory import LINE
from sparsekit.kernels.plan import Plan
from sparsekit.kernels.processor import LOOKUP_INPUTS
from sparsekit.kernels.rectify import finish_row, rectify
from sparsekit.kernels.scratch import aligned_scratch
from sparsekit.kernels.simd_lookup import LANES, byte_planes, group_sums, ranked_sums, sums_of_eight, window_sums

_LAYOUT = {layout.TABLE: layout for layout in (SortedLookup, SlidingLookup)}.get(LOOKUP_INPUTS)


def look_up(plan: Plan, values, x, bias, relu, out) -> bool:
    """Whether out = W x could be computed: not on every processor, nor for values that may change or are too few.

    Nor if x is not finite. An infinite input would meet the zeros that fill steps up, and make NaN of neurons that
    do not read it.
    """
    lookup = None if _LAYOUT is None else plan.lookup(_LAYOUT, values)
    if lookup is None:
        return False
    work = len(lookup.steps) * LANES
    if isinstance(lookup, SortedLookup):
        if x.size % LOOKUP_INPUTS:
            x = np.concatenate([x, np.zeros((-x.size % LOOKUP_INPUTS, 1), dtype=x.dtype)])
        return run(_sum_sorted, work, lookup.steps, lookup.bounds, lookup.ranks, x, bias, relu, out)
    done = run(_sum_sliding, work, lookup.memory, x, bias, relu, out)
    if not is_parallel(work):
        kernel: Any = _sum_sliding.serial
        kernel.disable_compile()  # for other kinds of arguments: they are to be refused
        plan.one_sample = partial(kernel, lookup.memory)
    return done


_group_sums, _ranked_sums = group_sums(), ranked_sums()
_byte_planes, _window_sums, _sums_of_eight = byte_planes(), window_sums(), sums_of_eight()
_ROWS, _STRETCHES, _WINDOW = SlidingLookup.ROWS, SlidingLookup.STRETCHES, SlidingLookup.TABLE


@numba.njit(inline="always")
def _is_finite(x):
    """Whether the sum of squares of x is: never if an element is not, and else mostly."""
    total = x.dtype.type(0)
    for k in range(x.size):
        total += x[k] * x[k]
    return math.isfinite(total)


@compiled
def _sum_sorted(steps, bounds, ranks, x, bias, relu, out):
    """out[r] = bias[r] + sum of what neuron r stores times what it reads, rectified if `relu`; if x is finite."""
    n_blocks, n_rows = ranks.shape
    n_groups = -(-n_rows // LANES)
    flat_steps, flat_ranks, x, out = steps.reshape(-1), ranks.reshape(-1), x.reshape(-1), out.reshape(-1)
    if not _is_finite(x):
        return False
    sums = aligned_scratch(n_blocks * n_groups * LANES, x)  # of the lanes of all groups
    for j in numba.prange(n_blocks):
        first = j * n_groups
        _group_sums(flat_steps, bounds, first, n_groups, x, j * LOOKUP_INPUTS, sums, first * LANES)
    n_parts = -(-n_rows // 256)
    for part in numba.prange(n_parts):
        low, high = part * 256, min(n_rows, part * 256 + 256)
        _ranked_sums(out, low, high, flat_ranks, n_rows, sums, n_groups * LANES, n_blocks)
        for r in range(low, high):
            finish_row(out, r, r + 1, bias, r, relu)
    return True


@numba.njit(inline="always")
def _overlaps(array, low, high):
    """Whether it takes any of the bytes from low to high."""
    begin = array.ctypes.data
    return begin < high and low < begin + array.nbytes


@numba.njit(inline="always")
def _suit(x, bias, out, n_out, n_in, low, high):
    """Whether shapes are as they should, and out overlaps nothing that is read, nor the bytes from low to high."""
    shapes = x.shape == (n_in, 1) and out.shape == (n_out, 1) and (bias.size == 0 or bias.size == n_out)
    apart = not _overlaps(out, x.ctypes.data, x.ctypes.data + x.nbytes)
    apart = apart and not _overlaps(out, bias.ctypes.data, bias.ctypes.data + bias.nbytes)
    return shapes and apart and not _overlaps(out, low, high)


@compiled
def _sum_sliding(memory, x, bias, relu, out):
    """As :func:`_sum_sorted`, with the memory of a :class:`SlidingLookup`; if also the other arguments suit it."""
    head = memory[:80].view(np.int64)
    n_out, n_in, low, high = head[0], head[1], head[2], head[3]
    if not _suit(x, bias, out, n_out, n_in, low, high):
        return False
    x, out = x.reshape(-1), out.reshape(-1)
    if not _is_finite(x):
        return False
    bounds = memory[head[4] : head[5]].view(np.int64)
    order = memory[head[5] : head[6]].view(np.uint16)
    rest_places = memory[head[6] : head[7]].view(np.uint32)
    starts = memory[head[7] : head[8]].view(np.uint16)
    flat_steps = memory[head[8] : head[9]].view(np.float32)
    # Half a line beyond whole ones: loads from planes that share their last bits would wait for each other.
    length = -(-order.size // LINE) * LINE + _WINDOW
    planes = np.empty(4 * length, np.uint8)
    _byte_planes(x, order, order.size, planes, length, flat_steps)
    sums, rest = aligned_scratch(rest_places.size, x), aligned_scratch(rest_places.size, x)
    for part in numba.prange(rest_places.size // _ROWS):
        first, last = part * _ROWS, min(out.size, (part + 1) * _ROWS)
        stretch = part * _STRETCHES
        for low in range(first, first + _ROWS, LANES):
            _window_sums(sums, low, flat_steps, starts, bounds[stretch], bounds[stretch + 1], planes, length)
            stretch += 1
        for low in range(first, first + _ROWS, 8):
            _sums_of_eight(rest, low, flat_steps, bounds[stretch], bounds[stretch + 1], x)
            stretch += 1
        for r in range(first, last):
            out[r] = sums[r] + rest[rest_places[r]]
        if bias.size:
            for r in range(first, last):
                out[r] += bias[r]
        if relu:
            rectify(out, first, last)
    return True
