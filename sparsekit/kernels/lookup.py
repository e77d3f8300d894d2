"""Kernels for one sample whose inputs are looked up in registers instead of memory.

Where the inputs of single weights are loaded, these loads and what puts them together are all that counts. Byte
permutations look 32 or 64 inputs up at a time. For weights that never change, since their order
(:mod:`sparsekit.kernels.lookup_layout`) takes longer to build than many products.
"""

import math

import numba
import numpy as np

from sparsekit.kernels.compiled import compiled, run
from sparsekit.kernels.lookup_layout import FixedLookup, SortedLookup
from sparsekit.kernels.plan import Plan
from sparsekit.kernels.processor import LOOKUP_INPUTS
from sparsekit.kernels.rectify import finish_row
from sparsekit.kernels.scratch import aligned_scratch
from sparsekit.kernels.simd_lookup import LANES, group_sums, ranked_sums, sums_of_eight

_LAYOUT = {layout.TABLE: layout for layout in (SortedLookup, FixedLookup)}.get(LOOKUP_INPUTS)


def look_up(plan: Plan, values, x, bias, relu, out) -> bool:
    """Whether out = W x could be computed: not on every processor, nor for values that may change or are too few.

    Nor if x is not finite. An infinite input would meet the zeros that fill steps up, and make NaN of neurons that
    do not read it.
    """
    lookup = None if _LAYOUT is None else plan.lookup(_LAYOUT, values)
    if lookup is None:
        return False
    if x.size % lookup.TABLE:
        x = np.concatenate([x, np.zeros((-x.size % lookup.TABLE, 1), dtype=x.dtype)])
    work = len(lookup.steps) * LANES
    if isinstance(lookup, SortedLookup):
        return run(_sum_sorted, work, lookup.steps, lookup.bounds, lookup.ranks, x, bias, relu, out)
    rest = lookup.rest_values, lookup.rest_indices, lookup.rest_bounds, lookup.rest_rows
    work += 4 * lookup.rest_values.size  # each of which takes as long as several of the others
    return run(_sum_fixed, work, lookup.steps, lookup.bounds, lookup.groups, *rest, x, bias, relu, out)


_STREAMS = FixedLookup.STREAMS
_set_groups, _add_groups = group_sums(adds=False, streams=1), group_sums(adds=True, streams=_STREAMS)
_ranked_sums, _sums_of_eight = ranked_sums(), sums_of_eight()


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
        _set_groups(flat_steps, bounds, first, n_groups, 0, x, j * LOOKUP_INPUTS, sums, first * LANES, 0)
    n_parts = -(-n_rows // 256)
    for part in numba.prange(n_parts):
        low, high = part * 256, min(n_rows, part * 256 + 256)
        _ranked_sums(out, low, high, flat_ranks, n_rows, sums, n_groups * LANES, n_blocks)
        for r in range(low, high):
            finish_row(out, r, r + 1, bias, r, relu)
    return True


@compiled
def _sum_fixed(steps, bounds, groups, rest_values, rest_indices, rest_bounds, rest_rows, x, bias, relu, out):
    """As :func:`_sum_sorted`."""
    flat_steps, x, out = steps.reshape(-1), x.reshape(-1), out.reshape(-1)
    flat_values, flat_indices = rest_values.reshape(-1), rest_indices.reshape(-1)
    n_blocks, n_eights = x.size // LOOKUP_INPUTS, rest_bounds.size - 1
    groups_of_part = _STREAMS * groups
    rows_of_part = groups_of_part * LANES
    if not _is_finite(x):
        return False
    for part in numba.prange(-(-out.size // rows_of_part)):
        sums, of_eight = aligned_scratch(rows_of_part, x), aligned_scratch(8, x)
        sums[:] = 0
        for j in range(n_blocks if steps.size else 0):
            these = part * groups_of_part * n_blocks + j * groups, groups, n_blocks * groups
            _add_groups(flat_steps, bounds, *these, x, j * LOOKUP_INPUTS, sums, 0, groups * LANES)
        first = part * rows_of_part
        for e in range(first // 8, min(n_eights, (first + rows_of_part) // 8)):
            _sums_of_eight(of_eight, flat_values, flat_indices, rest_bounds[e], rest_bounds[e + 1], x)
            for lane in range(8):
                r = rest_rows[8 * e + lane]
                if r >= 0:
                    out[r] = sums[r - first] + of_eight[lane]
                    finish_row(out, r, r + 1, bias, r, relu)
    return True
