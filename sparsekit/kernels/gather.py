"""The loops of W x and of W^T g: every row of the result is a weighted sum of rows of x.

Which of them suits a product is the business of :mod:`sparsekit.kernels.cpu`. All are for feature-major arrays;
those for batches take the batch whole vectors at a time, or several, and keep their sums in registers.

In a loop over rows no function of Numba's may be called with arrays, unless it is inlined: Numba counts references
around the call, and that takes longer than the sums of a row.
"""

import numba
import numpy as np

from sparsekit.kernels.compiled import Kernel, compiled
from sparsekit.kernels.memory import LINE
from sparsekit.kernels.processor import VECTOR_BYTES, lanes
from sparsekit.kernels.rectify import finish_row, rectify
from sparsekit.kernels.scratch import aligned_scratch, copy_part, start_rows
from sparsekit.kernels.simd import copy_rows, final_runs, sparse_dot, weighted_rows, weighted_runs

TILE_BYTES = min(256, 8 * VECTOR_BYTES)  # of the batch, in gather_tiles: at most 8 registers
BLOCK = 49_152 // TILE_BYTES  # inputs whose tile the first-level cache holds, or most of it
STRIP_BYTES = 2 * LINE  # of the batch, in gather_strips: several registers, and as much of it as a cache holds
COPY_READERS = 8  # neurons that read an input; fewer do not pay for copying it

_TILE_VECTORS, _STRIP_VECTORS = TILE_BYTES // VECTOR_BYTES, STRIP_BYTES // VECTOR_BYTES

_dot = sparse_dot()
_sum_1, _sum_2, _sum_4, _sum_8 = (weighted_rows(vectors, 8 // vectors) for vectors in (1, 2, 4, 8))
_sum_half, _sum_quarter, _sum_eighth = (weighted_rows(1, 8, part) for part in (2, 4, 8))
_sum_strip = weighted_rows(_STRIP_VECTORS, 8 // _STRIP_VECTORS)
_sum_half_strip = weighted_rows(_STRIP_VECTORS // 2, 16 // _STRIP_VECTORS)
_add_runs, _finish_runs = (make(_TILE_VECTORS, 8 // _TILE_VECTORS) for make in (weighted_runs, final_runs))


@compiled
def dot_rows(values, indices, indptr, x, bias, relu, out):
    """For a batch of one, out[r] = sum over the slots s of row r of values[s] * x[indices[s]]."""
    for r in numba.prange(out.shape[0]):
        out[r] = _dot(values, indices, indptr[r], indptr[r + 1], x)
        finish_row(out, r, r + 1, bias, r, relu)


@compiled
def gather_narrow(values, indices, indptr, x, bias, relu, out):
    """As :func:`gather_wide` for a batch of half, a quarter or an eighth of a vector."""
    batch = x.shape[1]
    width = lanes(x)
    flat_x, flat_out = x.reshape(-1), out.reshape(-1)
    for r in numba.prange(out.shape[0]):
        start, end, y = indptr[r], indptr[r + 1], r * batch
        if batch == width // 2:
            _sum_half(flat_out, y, values, indices, start, end, flat_x, 0, batch)
        elif batch == width // 4:
            _sum_quarter(flat_out, y, values, indices, start, end, flat_x, 0, batch)
        else:
            _sum_eighth(flat_out, y, values, indices, start, end, flat_x, 0, batch)
        finish_row(flat_out, y, y + batch, bias, r, relu)


@compiled
def gather_wide(values, indices, indptr, x, bias, relu, out):
    """For every row r: out[r, :] = sum over its slots s of values[s] * x[indices[s], :].

    The batch is whole vectors; it is covered by tiles of 8, 4, 2 and 1 of them.
    """
    batch = x.shape[1]
    width = lanes(x)
    flat_x, flat_out = x.reshape(-1), out.reshape(-1)
    for r in numba.prange(out.shape[0]):
        start, end, y = indptr[r], indptr[r + 1], r * batch
        c = 0
        while c + 8 * width <= batch:
            _sum_8(flat_out, y + c, values, indices, start, end, flat_x, c, batch)
            c += 8 * width
        if c + 4 * width <= batch:
            _sum_4(flat_out, y + c, values, indices, start, end, flat_x, c, batch)
            c += 4 * width
        if c + 2 * width <= batch:
            _sum_2(flat_out, y + c, values, indices, start, end, flat_x, c, batch)
            c += 2 * width
        if c < batch:
            _sum_1(flat_out, y + c, values, indices, start, end, flat_x, c, batch)
        finish_row(flat_out, y, y + batch, bias, r, relu)


def whole_vectors(batch: int, lanes: int) -> int:
    """The batch filled up to vectors of so many lanes, or to 2, 4, 8, ... samples where that is less."""
    return -(-batch // lanes) * lanes if batch > lanes // 2 else 1 << (batch - 1).bit_length()


def direct_kernel(bytes_of_row: int) -> Kernel:
    """The loops for rows of x of so many bytes: :func:`gather_narrow` if they are less than a vector."""
    return gather_narrow if bytes_of_row < VECTOR_BYTES else gather_wide


def _copy_columns(vectors):
    """Make the function that copies a part of the batch, so many vectors wide, of some rows of x."""
    copy = copy_rows(vectors)

    @numba.njit
    def copy_columns(x, first_row, n_rows, column, width, to):
        """to = x[first_row : first_row + n_rows, column : column + width], zero beyond the last column."""
        batch, flat_x = x.shape[1], x.reshape(-1)
        have, first = batch - column, first_row * batch + column
        if have >= width:
            copy(to, 0, width, flat_x, first, batch, n_rows)
            return
        to[: n_rows * width] = 0
        for i in range(n_rows):
            copy_part(to, i * width, flat_x, first + i * batch, have)

    return copy_columns


_copy_tile, _copy_strip = _copy_columns(_TILE_VECTORS), _copy_columns(_STRIP_VECTORS)


@compiled
def gather_strips(values, indices, indptr, n_parts, x, bias, relu, out):
    """As :func:`gather_wide`, for any batch: strip by strip of it, each copied to a place of its own."""
    n_inputs, batch = x.shape
    n_rows = out.shape[0]
    flat_out = out.reshape(-1)
    n_strips = -(-batch // (_STRIP_VECTORS * lanes(x)))
    for task in numba.prange(n_strips * n_parts):
        width = _STRIP_VECTORS * lanes(x)
        column, part = task // n_parts * width, task % n_parts
        low, high = part * n_rows // n_parts, (part + 1) * n_rows // n_parts
        have = min(width, batch - column)
        strip, sums = aligned_scratch(n_inputs * width, x), aligned_scratch(width, x)
        _copy_strip(x, 0, n_inputs, column, width, strip)
        for r in range(low, high):
            start, end, y = indptr[r], indptr[r + 1], r * batch + column
            if have == width:
                _sum_strip(flat_out, y, values, indices, start, end, strip, 0, width)
            elif 2 * have > width:
                _sum_strip(sums, 0, values, indices, start, end, strip, 0, width)
                copy_part(flat_out, y, sums, 0, have)
            else:
                _sum_half_strip(sums, 0, values, indices, start, end, strip, 0, width)
                copy_part(flat_out, y, sums, 0, have)
            finish_row(flat_out, y, y + have, bias, r, relu)


@compiled
def gather_tiles(values, indices, indptr, rows, block, n_parts, in_place, x, bias, relu, out):
    """As :func:`gather_wide` with the weights in runs of a block of inputs each.

    in_place : whether x is a single tile as it stands; nothing is copied then, and out takes the sums
    """
    n_inputs, batch = x.shape
    n_rows = out.shape[0]
    flat_x, flat_out, runs = x.reshape(-1), out.reshape(-1), (indptr[:-1], indptr[1:], rows)
    bound = x.dtype.type(0 if relu else -np.inf)
    n_tiles, n_blocks = -(-batch // (_TILE_VECTORS * lanes(x))), -(-n_inputs // block)
    for task in numba.prange(n_tiles * n_parts):
        # Set in this loop, these are constants for LLVM: fewer instructions a run.
        width, line, lines = _TILE_VECTORS * lanes(x), LINE // x.itemsize, TILE_BYTES // LINE
        column, part = task // n_parts * width, task % n_parts
        low, high = part * n_rows // n_parts, (part + 1) * n_rows // n_parts
        have = min(width, batch - column)
        if in_place:
            tile, y = flat_x, flat_out[low * width : high * width]
        else:
            tile, y = aligned_scratch(block * width, x), aligned_scratch((high - low) * width, x)
        start_rows(y, bias, low, width)
        for j in range(n_blocks):
            first = j * block * width
            if not in_place:
                first = 0
                _copy_tile(x, j * block, min(block, n_inputs - j * block), column, width, tile)
            next_row, next_column = ((j + 1) * block, column) if j + 1 < n_blocks else (0, column + width)
            n_ahead = min(block, n_inputs - next_row) if next_column < batch else 0
            ahead = flat_x, next_row * batch + next_column, batch, n_ahead, line, lines
            these = j * n_rows + low, j * n_rows + high
            sums = y, -low * width, width, values, indices, runs, *these, tile, first, width, ahead
            if j + 1 == n_blocks and have == width:
                _finish_runs(*sums, (bound, flat_out, column, batch, width, _TILE_VECTORS, False))
            else:
                _add_runs(*sums)
        if have < width:
            for r in range(low, high):
                here = (r - low) * width
                if relu:
                    rectify(y, here, here + have)
                copy_part(flat_out, r * batch + column, y, here, have)
