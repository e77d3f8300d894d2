"""Numba-parallel kernels for feature-major arrays.

With X (features, batch) every stored weight is one contiguous `y[:] += w * x[:]` over the batch: vectorised
by the compiler, without a gather instruction, the same loop for all products. Several stored weights are taken
an iteration, so that each row of y is loaded and stored less often. A batch of one is a dot product a row.

Each iteration of a `prange` owns the rows it writes and sums them in a fixed order: no races, and the same bits
for any number of threads. Condensed storage is CSR with rows of equal length, so both run the same kernels.
`prange` neither raises nor checks bounds: the indices were validated when the matrix was built.
Arguments as in :mod:`sparsekit.kernels.reference`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np

# Sums may be reordered and contracted to fused multiply-adds; NaN and Inf keep their meaning.
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}

_PARALLEL_FROM = 500_000  # multiply-adds, roughly 50 microseconds on one thread


def condensed_matmul(values, indices, rows, x, out):
    """out = W x; rows of ablated neurons are zero."""
    if len(rows) < len(out):
        out[...] = 0
    return _forward(values.reshape(-1), indices.reshape(-1), _row_starts(indices.shape), rows, x, out)


def condensed_rmatmul(values, indices, rows, g, out, transposed):
    """out = W^T g."""
    return _input_gradient(values.reshape(-1), transposed, g, out)


def condensed_sampled_outer(indices, rows, g, x, out):
    """out = g x^T at the stored positions."""
    _weight_gradient(indices.reshape(-1), _row_starts(indices.shape), rows, g, x, out.reshape(-1))
    return out


def csr_matmul(values, indices, indptr, x, out):
    """out = W x."""
    return _forward(values, indices, indptr, _all_rows(len(out)), x, out)


def csr_rmatmul(values, indices, indptr, g, out, transposed):
    """out = W^T g."""
    return _input_gradient(values, transposed, g, out)


def csr_sampled_outer(indices, indptr, g, x, out):
    """out = g x^T at the stored positions."""
    return _weight_gradient(indices, indptr, _all_rows(len(g)), g, x, out)


def _forward(values, indices, indptr, rows, x, out):
    work = values.size * x.shape[1]
    if x.shape[1] == 1:
        _run(_dot_rows, work, values, indices, indptr, rows, x.reshape(-1), out.reshape(-1))
    else:
        _run(_gather_rows, work, values, indices, indptr, rows, x, out)
    return out


def _input_gradient(values, transposed, g, out):
    work = values.size * g.shape[1]
    _run(_gather_columns, work, values, transposed.positions, transposed.rows, transposed.indptr, g, out)
    return out


def _weight_gradient(indices, indptr, rows, g, x, out):
    _run(_sampled_products, indices.size * x.shape[1], indices, indptr, rows, g, x, out)
    return out


class Kernel(NamedTuple):
    """The same loops compiled for one thread and for several; each is compiled when it is first called."""

    serial: Callable[..., None]
    parallel: Callable[..., None]


def _compiled(loops: Callable[..., None]) -> Kernel:
    return Kernel(numba.njit(fastmath=FASTMATH)(loops), numba.njit(parallel=True, fastmath=FASTMATH)(loops))


def _run(kernel: Kernel, multiply_adds: int, *arrays: np.ndarray) -> None:
    """Small work stays on one thread: starting and joining the others would take longer, on a busy machine by far.

    The choice looks at the work alone, not at the number of threads, so that results do not depend on it.
    """
    (kernel.parallel if multiply_adds >= _PARALLEL_FROM else kernel.serial)(*arrays)


@lru_cache
def _row_starts(shape: tuple[int, int]) -> np.ndarray:
    n_active, fan_in = shape
    return _read_only(np.arange(n_active + 1, dtype=np.int64) * fan_in)


@lru_cache
def _all_rows(n_out: int) -> np.ndarray:
    return _read_only(np.arange(n_out, dtype=np.int32))


def _read_only(array: np.ndarray) -> np.ndarray:
    """All index arrays are read-only, as in the matrix objects, so that Numba compiles one version for them."""
    array.flags.writeable = False
    return array


@_compiled
def _gather_rows(values, indices, indptr, rows, x, out):
    """For every stored row i: out[rows[i], :] = sum over its slots s of values[s] * x[indices[s], :]."""
    for i in numba.prange(rows.shape[0]):
        y = out[rows[i]]
        y[:] = 0
        s, end = indptr[i], indptr[i + 1]
        while s + 8 <= end:
            w0, x0 = values[s], x[indices[s]]
            w1, x1 = values[s + 1], x[indices[s + 1]]
            w2, x2 = values[s + 2], x[indices[s + 2]]
            w3, x3 = values[s + 3], x[indices[s + 3]]
            w4, x4 = values[s + 4], x[indices[s + 4]]
            w5, x5 = values[s + 5], x[indices[s + 5]]
            w6, x6 = values[s + 6], x[indices[s + 6]]
            w7, x7 = values[s + 7], x[indices[s + 7]]
            for b in range(y.shape[0]):
                low = w0 * x0[b] + w1 * x1[b] + w2 * x2[b] + w3 * x3[b]
                high = w4 * x4[b] + w5 * x5[b] + w6 * x6[b] + w7 * x7[b]
                y[b] += low + high
            s += 8
        while s < end:
            w, xs = values[s], x[indices[s]]
            for b in range(y.shape[0]):
                y[b] += w * xs[b]
            s += 1


@_compiled
def _dot_rows(values, indices, indptr, rows, x, out):
    """For a batch of one, out[rows[i]] = sum over the slots s of row i of values[s] * x[indices[s]].

    Four running sums, because an addition waits for the one before it.
    """
    zero = x.dtype.type(0)
    for i in numba.prange(rows.shape[0]):
        s, end = indptr[i], indptr[i + 1]
        d0, d1, d2, d3 = zero, zero, zero, zero
        while s + 4 <= end:
            d0 += values[s] * x[indices[s]]
            d1 += values[s + 1] * x[indices[s + 1]]
            d2 += values[s + 2] * x[indices[s + 2]]
            d3 += values[s + 3] * x[indices[s + 3]]
            s += 4
        while s < end:
            d0 += values[s] * x[indices[s]]
            s += 1
        out[rows[i]] = (d0 + d1) + (d2 + d3)


@_compiled
def _gather_columns(values, positions, sources, indptr, g, out):
    """For every column j: out[j, :] = sum over its slots s of values[positions[s]] * g[sources[s], :]."""
    for j in numba.prange(out.shape[0]):
        y = out[j]
        y[:] = 0
        s, end = indptr[j], indptr[j + 1]
        while s + 4 <= end:
            w0, g0 = values[positions[s]], g[sources[s]]
            w1, g1 = values[positions[s + 1]], g[sources[s + 1]]
            w2, g2 = values[positions[s + 2]], g[sources[s + 2]]
            w3, g3 = values[positions[s + 3]], g[sources[s + 3]]
            for b in range(y.shape[0]):
                y[b] += w0 * g0[b] + w1 * g1[b] + w2 * g2[b] + w3 * g3[b]
            s += 4
        while s < end:
            w, gs = values[positions[s]], g[sources[s]]
            for b in range(y.shape[0]):
                y[b] += w * gs[b]
            s += 1


@_compiled
def _sampled_products(indices, indptr, rows, g, x, out):
    """For every slot s of every stored row i: out[s] = sum over b of g[rows[i], b] * x[indices[s], b]."""
    zero = g.dtype.type(0)
    for i in numba.prange(rows.shape[0]):
        gi = g[rows[i]]
        s, end = indptr[i], indptr[i + 1]
        while s + 4 <= end:
            x0, x1, x2, x3 = x[indices[s]], x[indices[s + 1]], x[indices[s + 2]], x[indices[s + 3]]
            d0, d1, d2, d3 = zero, zero, zero, zero
            for b in range(gi.shape[0]):
                d0 += gi[b] * x0[b]
                d1 += gi[b] * x1[b]
                d2 += gi[b] * x2[b]
                d3 += gi[b] * x3[b]
            out[s], out[s + 1], out[s + 2], out[s + 3] = d0, d1, d2, d3
            s += 4
        while s < end:
            xs = x[indices[s]]
            d = zero
            for b in range(gi.shape[0]):
                d += gi[b] * xs[b]
            out[s] = d
            s += 1
