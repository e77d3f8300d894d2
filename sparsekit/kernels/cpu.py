"""Numba-parallel kernels for feature-major arrays, with the loops of :mod:`sparsekit.kernels.gather` and `simd`.

With X (features, batch) every stored weight is one contiguous `y[:] += w * x[:]` over the batch: vectors without
a gather instruction, the same loop for W X and, over the transposed index, for W^T G. How it runs depends on the
batch:

one sample
    a dot product a row. For weights that never change, and where the processor can permute bytes, many rows at a
    time look their inputs up in registers (:mod:`sparsekit.kernels.lookup`).
direct
    row by row, as many samples at a time as fit the registers. Best while X is small, or read by few.
in strips
    32 samples (float32) at a time: that strip of X is copied to a contiguous place, which the second-level cache
    holds, and every neuron reads its inputs there. For wider batches and inputs that several neurons read.
blocked
    a tile of up to 256 bytes of the batch at a time: the tile of a block of inputs is copied to a contiguous
    place that fits the first-level cache, and every neuron adds up its weights in that block. For wide batches
    and neurons with several weights in a block. Meanwhile the next tile is asked for.

The weight gradient holds a part of a row of G in registers and multiplies it with the rows of X that the neuron
reads.

Each iteration of a `prange` owns what it writes and sums in an order that depends on the shapes alone: no races,
and the same bits for any number of threads. Condensed storage is CSR with rows of equal length, so both run the
same kernels. `prange` neither raises nor checks bounds: the indices were validated when the matrix was built.
Arguments as in :mod:`sparsekit.kernels.reference`.
"""

from collections.abc import Callable

import numba
import numpy as np

from sparsekit.kernels.at_once import multiply
from sparsekit.kernels.compiled import compiled, is_parallel, run
from sparsekit.kernels.gather import (
    BLOCK,
    COPY_READERS,
    STRIP_BYTES,
    TILE_BYTES,
    direct_kernel,
    dot_rows,
    gather_strips,
    gather_tiles,
    whole_vectors,
)
from sparsekit.kernels.lookup import look_up
from sparsekit.kernels.memory import LINE, address, aligned_empty
from sparsekit.kernels.plan import Order, Plan
from sparsekit.kernels.processor import CACHE_BYTES, VECTOR_BYTES, lanes
from sparsekit.kernels.scratch import narrow, widen
from sparsekit.kernels.simd import copy_runs, run_products, transpose_square

_NO_BIAS = {dtype: np.empty(0, dtype=dtype) for dtype in (np.dtype(np.float32), np.dtype(np.float64))}


def condensed_matmul(values, indices, rows, x, out, plan, bias=None, relu=False):
    """out = W x; rows of ablated neurons are zero."""
    return _forward(values, indices, x, out, plan, bias, relu)


def condensed_rmatmul(values, indices, rows, g, out, plan):
    """out = W^T g."""
    return _input_gradient(values.reshape(-1), g, out, plan)


def condensed_sampled_outer(indices, rows, g, x, out, plan):
    """out = g x^T at the stored positions."""
    _weight_gradient(indices.reshape(-1), g, x, out.reshape(-1), plan)
    return out


def csr_matmul(values, indices, indptr, x, out, plan, bias=None, relu=False):
    """out = W x."""
    return _forward(values, indices, x, out, plan, bias, relu)


def csr_rmatmul(values, indices, indptr, g, out, plan):
    """out = W^T g."""
    return _input_gradient(values, g, out, plan)


def csr_sampled_outer(indices, indptr, g, x, out, plan):
    """out = g x^T at the stored positions."""
    return _weight_gradient(indices, g, x, out, plan)


def transpose(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out = x^T, square by square."""
    run(_transpose, x.size, x, out)
    return out


def _forward(values, indices, x, out, plan: Plan, bias, relu):
    bias = _NO_BIAS[out.dtype] if bias is None else bias
    if x.shape[1] == 1 and look_up(plan, values, x, bias, relu, out):
        return out
    values, indices = values.reshape(-1), indices.reshape(-1)
    if _wants_blocks(values.size, x, len(out), plan.frozen):
        _gather_blocked(values, plan.rows_in_blocks, x, bias, relu, out)
        return out
    strip_parts = _strip_parts(values.size, x, len(out))
    if not multiply(plan, values, x, bias, relu, out, strip_parts):
        _gather(values, indices, plan.indptr, x, bias, relu, out, strip_parts)
    return out


def _input_gradient(values, g, out, plan: Plan):
    bias = _NO_BIAS[out.dtype]
    if _wants_blocks(values.size, g, len(out), plan.frozen):
        _gather_blocked(values, plan.columns_in_blocks, g, bias, False, out)
    else:
        order = plan.by_column
        strip_parts = _strip_parts(values.size, g, len(out))
        _gather(_in_order(order, values), order.indices, order.indptr, g, bias, False, out, strip_parts)
    return out


def _weight_gradient(indices, g, x, out, plan: Plan):
    work = indices.size * x.shape[1]
    if x.shape[1] == 1:
        run(_scaled_inputs, work, indices, plan.indptr, g.reshape(-1), x.reshape(-1), out)
        return out
    readers = indices.size / len(x)
    g, x = _whole_vectors(g, readers), _whole_vectors(x, readers)
    n_parts = _n_parts(work, 1, len(g))
    whole_rows = x.nbytes < CACHE_BYTES or _run_length(indices.size, len(x), len(g)) < 5
    runs = plan.runs(len(x) if whole_rows else BLOCK, n_parts)
    run(_products, work, indices, *runs, n_parts, g, x, out)
    return out


def _wants_blocks(nnz: int, x: np.ndarray, n_rows: int, frozen: bool) -> bool:
    """Whether tiles pay: rows of x so long that they conflict in the cache, read often, and runs of weights.

    The wider a strip, the shorter the runs may be. An x that stays in the second-level cache as it is gains from
    tiles only where runs are long.
    """
    bytes_of_row = x.shape[1] * x.itemsize
    least = 24 if x.nbytes < CACHE_BYTES else 8
    if _wants_strips(nnz, x):
        least = 24 - 24 * _strip_of_cache(x)
    if bytes_of_row < 512:
        least = max(16, least) if frozen and bytes_of_row >= 256 else np.inf
    return _run_length(nnz, len(x), n_rows) >= least and nnz >= COPY_READERS * len(x)


def _wants_strips(nnz: int, x: np.ndarray) -> bool:
    """Whether strips pay: for inputs that are read often; if x fits the second-level cache by far more often.

    Measured with vectors of 32 bytes. With those of 64 a strip is two of them, and the caches are other ones.
    """
    if VECTOR_BYTES != 32 or x.shape[1] * x.itemsize <= STRIP_BYTES or _strip_of_cache(x) > 1:
        return False
    return nnz >= (7 if x.nbytes >= 2 * CACHE_BYTES else 25) * len(x)


def _strip_parts(nnz: int, x: np.ndarray, n_rows: int) -> int:
    """Into how many parts to cut the rows of strips; 0 where they do not pay."""
    n_strips = -(-x.shape[1] * x.itemsize // STRIP_BYTES)
    return _n_parts(nnz * x.shape[1], n_strips, n_rows) if _wants_strips(nnz, x) else 0


def _strip_of_cache(x: np.ndarray) -> float:
    """The part of the second-level cache that a strip of x takes."""
    return len(x) * STRIP_BYTES / CACHE_BYTES


def _run_length(nnz: int, n_inputs: int, n_rows: int) -> float:
    """Stored weights of a row in a block of inputs, on average."""
    return nnz / (-(-n_inputs // BLOCK) * n_rows)


def _in_order(order: Order, values: np.ndarray) -> np.ndarray:
    return order.take(values, _copy_in_order)


def _copy_in_order(values: np.ndarray, order: Order, out: np.ndarray) -> None:
    if order.in_runs:
        run(_take_runs, out.size, values, order.places, order.indptr, out)
    else:
        run(_take, out.size, values, order.places, out)


def _gather(values, indices, indptr, x, bias, relu, out, strip_parts):
    work = values.size * x.shape[1]
    if x.shape[1] == 1:
        run(dot_rows, work, values, indices, indptr, x.reshape(-1), bias, relu, out.reshape(-1))
        return
    if strip_parts:
        run(gather_strips, work, values, indices, indptr, strip_parts, x, bias, relu, out)
        return
    x = _whole_vectors(x, values.size / len(x))
    kernel = direct_kernel(x.shape[1] * x.itemsize)
    if x.shape[1] == out.shape[1]:
        run(kernel, work, values, indices, indptr, x, bias, relu, out)
    else:
        padded = aligned_empty((len(out), x.shape[1]), out.dtype)
        run(kernel, work, values, indices, indptr, x, bias, relu, padded)
        narrow(padded, out)


def _gather_blocked(values, in_blocks: Callable[[int, int], Order], x, bias, relu, out):
    bytes_of_row, work = x.shape[1] * x.itemsize, values.size * x.shape[1]
    n_parts = _n_parts(work, -(-bytes_of_row // TILE_BYTES), len(out))
    order = in_blocks(BLOCK, n_parts)
    in_place = bytes_of_row == TILE_BYTES and address(x) % LINE == 0
    arrays = _in_order(order, values), order.indices, order.indptr, order.rows
    run(gather_tiles, work, *arrays, BLOCK, n_parts, in_place, x, bias, relu, out)


def _n_parts(work: int, n_tiles: int, n_rows: int) -> int:
    """Into how many parts to cut the rows of every tile, so that all threads have work; sums do not depend on it.

    Every part copies its tiles anew, so there are no more than needed.
    """
    threads = numba.get_num_threads() if is_parallel(work) else 1
    if n_tiles % threads == 0 or n_tiles >= 4 * threads:
        return 1
    return max(1, min(n_rows, -(-2 * threads // n_tiles)))


def _whole_vectors(x: np.ndarray, readers: float) -> np.ndarray:
    """x with its rows filled up by zeros to whole vectors, or to 2, 4, 8, ... samples where that is less.

    A copy if that changes x, or if x does not start on a cache line and is read often enough to pay for it.
    """
    n_rows, batch = x.shape
    width = whole_vectors(batch, VECTOR_BYTES // x.itemsize)
    if width == batch and (readers < COPY_READERS or address(x) % LINE == 0):
        return x
    wide = aligned_empty((n_rows, width), x.dtype)
    widen(x, wide)
    return wide


_copy_runs, _transpose_square = copy_runs(), transpose_square()
_products_1, _products_2, _products_4, _products_8 = (run_products(vectors) for vectors in (1, 2, 4, 8))
_products_half, _products_quarter, _products_eighth = (run_products(1, part) for part in (2, 4, 8))


@compiled
def _products(indices, starts, ends, rows, n_parts, g, x, out):
    """For every slot s of every row r: out[s] = sum over b of g[r, b] * x[indices[s], b].

    Run by run; the batch is whole vectors, or half, a quarter or an eighth of one.
    """
    batch, n_rows = x.shape[1], g.shape[0]
    width = lanes(x)
    flat_g, flat_x = g.reshape(-1), x.reshape(-1)
    for part in numba.prange(n_parts):
        for first in range(0, rows.size, n_rows):
            low, high = first + part * n_rows // n_parts, first + (part + 1) * n_rows // n_parts
            for q in range(low, high):
                out[starts[q] : ends[q]] = 0
            c = 0
            while c < batch:
                runs = (starts, ends, rows), low, high
                sides = flat_g, c, batch, flat_x, c, batch
                if c + 8 * width <= batch:
                    _products_8(out, indices, *runs, *sides)
                    c += 8 * width
                elif c + 4 * width <= batch:
                    _products_4(out, indices, *runs, *sides)
                    c += 4 * width
                elif c + 2 * width <= batch:
                    _products_2(out, indices, *runs, *sides)
                    c += 2 * width
                elif c + width <= batch:
                    _products_1(out, indices, *runs, *sides)
                    c += width
                elif batch == width // 2:
                    _products_half(out, indices, *runs, *sides)
                    c += width
                elif batch == width // 4:
                    _products_quarter(out, indices, *runs, *sides)
                    c += width
                else:
                    _products_eighth(out, indices, *runs, *sides)
                    c += width


@compiled
def _scaled_inputs(indices, indptr, g, x, out):
    """As :func:`_products` for a batch of one."""
    for r in numba.prange(g.shape[0]):
        for s in range(indptr[r], indptr[r + 1]):
            out[s] = g[r] * x[indices[s]]


@compiled
def _take_runs(values, starts, indptr, out):
    """out = the runs of values that begin at `starts`, one after the other."""
    n_parts = -(-starts.size // 256)
    for part in numba.prange(n_parts):
        _copy_runs(out, indptr, values, starts, part * 256, min(starts.size, part * 256 + 256))


@compiled
def _take(values, positions, out):
    """out = values[positions]."""
    for s in numba.prange(positions.size):
        out[s] = values[positions[s]]


@compiled
def _transpose(x, out):
    """out = x^T, in squares as wide as a vector; what is left beside them element by element."""
    n_rows, n_columns = x.shape
    width = lanes(x)
    flat_x, flat_out = x.reshape(-1), out.reshape(-1)
    for band in numba.prange(-(-n_columns // width)):
        first, last = band * width, min(n_columns, band * width + width)
        in_squares = n_rows // width * width if last - first == width else 0
        for r in range(0, in_squares, width):
            _transpose_square(flat_out, first * n_rows + r, n_rows, flat_x, r * n_columns + first, n_columns)
        for c in range(first, last):
            for r in range(in_squares, n_rows):
                out[c, r] = x[r, c]
