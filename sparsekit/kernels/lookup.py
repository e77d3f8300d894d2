"""Kernels for one sample whose inputs are looked up in registers instead of memory.

Where the inputs of single weights are loaded, these loads and what puts them together are all that counts. Byte
permutations look 32 or 64 inputs up at a time. For weights that never change, since their order
(:mod:`sparsekit.kernels.lookup_layout`) takes longer to build than many products.
"""

import math
from functools import partial

import numba
import numpy as np

from sparsekit.kernels.at_once import refuse_others, suit
from sparsekit.kernels.compiled import compiled, is_parallel, run
from sparsekit.kernels.lookup_layout import SlidingLookup, SortedLookup
from sparsekit.kernels.memory import LINE
from sparsekit.kernels.plan import Plan
from sparsekit.kernels.processor import LOOKUP_INPUTS
from sparsekit.kernels.rectify import finish_row, rectify
from sparsekit.kernels.scratch import aligned_scratch, copy_part
from sparsekit.kernels.simd_lookup import byte_planes, group_sums, ranked_sums, sums_of_eight, window_sums

_group_sums, _ranked_sums = group_sums(), ranked_sums()
_byte_planes, _window_sums, _sums_of_eight = byte_planes(), window_sums(), sums_of_eight()
_BLOCK, _BLOCK_LANES = SortedLookup.TABLE, SortedLookup.LANES
_WINDOW, _WINDOW_LANES = SlidingLookup.TABLE, SlidingLookup.LANES
_ROWS, _STRETCHES = SlidingLookup.ROWS, SlidingLookup.STRETCHES


def look_up(plan: Plan, values, x, bias, relu, out) -> bool:
    """Whether out = W x could be computed: not on every processor, nor for values that may change or are too few.

    Nor if x is not finite. An infinite input would meet the zeros that fill steps up, and make NaN of neurons that
    do not read it. Once a product is done, the plan does the next at once.
    """
    if LOOKUP_INPUTS not in _KERNELS:
        return False
    layout, kernel = _KERNELS[LOOKUP_INPUTS]
    lookup = plan.lookup(layout, values)
    if lookup is None:
        return False
    work = len(lookup.steps) * layout.LANES
    done = run(kernel, work, lookup.memory, x, bias, relu, out)
    if not is_parallel(work):
        plan.at_once[1] = partial(refuse_others(kernel.serial), lookup.memory)
    return done


@numba.njit(inline="always")
def _is_finite(x):
    """Whether the sum of squares of x is: never if an element is not, and else mostly."""
    total = x.dtype.type(0)
    for k in range(x.size):
        total += x[k] * x[k]
    return math.isfinite(total)


@compiled
def _sum_sorted(memory, x, bias, relu, out):
    """out = W x by the memory of a :class:`SortedLookup`, with bias and ReLU; whether the arguments suit it."""
    head = memory[:64].view(np.int64)
    if not (x.shape[1] == 1 and suit(head, x, bias, out) and _is_finite(x.reshape(-1))):
        return False
    bounds = memory[head[4] : head[5]].view(np.int64)
    ranks = memory[head[5] : head[6]].view(np.uint16)
    steps = memory[head[6] : head[7]].view(np.float32)
    x, out = x.reshape(-1), out.reshape(-1)
    n_blocks, n_rows = -(-x.size // _BLOCK), out.size
    if x.size % _BLOCK:
        padded = aligned_scratch(n_blocks * _BLOCK, x)
        copy_part(padded, 0, x, 0, x.size)
        padded[x.size :] = 0
        x = padded
    n_groups = -(-n_rows // _BLOCK_LANES)
    n_sums = n_groups * _BLOCK_LANES
    sums = aligned_scratch(n_blocks * n_sums, x)  # of the lanes of all groups
    for j in numba.prange(n_blocks):
        _group_sums(steps, bounds, j * n_groups, n_groups, x, j * _BLOCK, sums, j * n_sums)
    n_parts = -(-n_rows // 256)
    for part in numba.prange(n_parts):
        low, high = part * 256, min(n_rows, part * 256 + 256)
        _ranked_sums(out, low, high, ranks, n_rows, sums, n_sums, n_blocks)
        for r in range(low, high):
            finish_row(out, r, r + 1, bias, r, relu)
    return True


@compiled
def _sum_sliding(memory, x, bias, relu, out):
    """As :func:`_sum_sorted`, by the memory of a :class:`SlidingLookup`."""
    head = memory[:80].view(np.int64)
    if not (x.shape[1] == 1 and suit(head, x, bias, out) and _is_finite(x.reshape(-1))):
        return False
    bounds = memory[head[4] : head[5]].view(np.int64)
    order = memory[head[5] : head[6]].view(np.uint16)
    rest_places = memory[head[6] : head[7]].view(np.uint32)
    starts = memory[head[7] : head[8]].view(np.uint16)
    steps = memory[head[8] : head[9]].view(np.float32)
    x, out = x.reshape(-1), out.reshape(-1)
    # Half a line beyond whole ones: loads from planes that share their last bits would wait for each other.
    length = -(-order.size // LINE) * LINE + _WINDOW
    planes = np.empty(4 * length, np.uint8)
    _byte_planes(x, order, order.size, planes, length, steps)
    sums, rest = aligned_scratch(rest_places.size, x), aligned_scratch(rest_places.size, x)
    for part in numba.prange(rest_places.size // _ROWS):
        first, last = part * _ROWS, min(out.size, (part + 1) * _ROWS)
        stretch = part * _STRETCHES
        for low in range(first, first + _ROWS, _WINDOW_LANES):
            _window_sums(sums, low, steps, starts, bounds[stretch], bounds[stretch + 1], planes, length)
            stretch += 1
        for low in range(first, first + _ROWS, 8):
            _sums_of_eight(rest, low, steps, bounds[stretch], bounds[stretch + 1], x)
            stretch += 1
        for r in range(first, last):
            out[r] = sums[r] + rest[rest_places[r]]
        if bias.size:
            for r in range(first, last):
                out[r] += bias[r]
        if relu:
            rectify(out, first, last)
    return True


_KERNELS = {_BLOCK: (SortedLookup, _sum_sorted), _WINDOW: (SlidingLookup, _sum_sliding)}
