"""What stands for the loops of :mod:`sparsekit.kernels.simd` where there are no vectors; described there."""

from collections.abc import Callable

import numba

from sparsekit.kernels.processor import lanes


def weighted_rows(vectors: int, part: int) -> Callable[..., None]:
    """A weighted sum of rows of x."""

    @numba.njit
    def weighted_rows(y, y0, values, indices, start, end, x, x0, stride):
        width = vectors * max(1, lanes(x) // part)
        y[y0 : y0 + width] = 0
        for s in range(start, end):
            first = x0 + int(indices[s]) * stride
            for t in range(width):
                y[y0 + t] += values[s] * x[first + t]

    return weighted_rows


def weighted_runs(vectors: int) -> Callable[..., None]:
    """For each run of a block of inputs, add a weighted sum of rows of x."""

    @numba.njit
    def weighted_runs(y, y0, y_stride, values, indices, runs, low, high, x, x0, stride, ahead):
        starts, ends, rows = runs
        for q in range(low, high):
            here = y0 + int(rows[q]) * y_stride
            for s in range(starts[q], ends[q]):
                first = x0 + int(indices[s]) * stride
                for t in range(vectors * lanes(x)):
                    y[here + t] += values[s] * x[first + t]

    return weighted_runs


def final_runs(vectors: int) -> Callable[..., None]:
    """As :func:`weighted_runs` for the last block, with the sums written elsewhere."""
    add = weighted_runs(vectors)

    @numba.njit
    def final_runs(y, y0, y_stride, values, indices, runs, low, high, x, x0, stride, ahead, to):
        add(y, y0, y_stride, values, indices, runs, low, high, x, x0, stride, ahead)
        bound, z, z0, z_stride, z_step, together, _ = to
        for row in runs[2][low:high]:
            for t in range(vectors):
                here, there = y0 + int(row) * y_stride + t * lanes(x), z0 + int(row) * z_stride
                there += t // together * z_step + t % together * lanes(x)
                for lane in range(lanes(x)):
                    total = y[here + lane]
                    z[there + lane] = bound if total < bound else total

    return final_runs


@numba.njit
def fence():
    """Plain loops write through the caches."""


def run_products(vectors: int, part: int) -> Callable[..., None]:
    """In each run, multiply one row of g with many of x."""

    @numba.njit
    def run_products(out, indices, runs, low, high, g, g0, g_stride, x, x0, stride):
        starts, ends, rows = runs
        for q in range(low, high):
            here = g0 + int(rows[q]) * g_stride
            for s in range(starts[q], ends[q]):
                first = x0 + int(indices[s]) * stride
                for t in range(vectors * max(1, lanes(x) // part)):
                    out[s] += g[here + t] * x[first + t]

    return run_products


def copy_rows(vectors: int) -> Callable[..., None]:
    """Copy a tile."""

    @numba.njit
    def copy_rows(target, t0, t_stride, source, s0, s_stride, n_rows):
        for i in range(n_rows):
            for t in range(vectors * lanes(source)):
                target[t0 + i * t_stride + t] = source[s0 + i * s_stride + t]

    return copy_rows


@numba.njit
def copy_runs(target, indptr, source, starts, low, high):
    """Gather runs."""
    for q in range(low, high):
        for s in range(indptr[q], indptr[q + 1]):
            target[s] = source[starts[q] + s - indptr[q]]


@numba.njit
def transpose_square(target, t0, t_stride, source, s0, s_stride):
    """Transpose a square."""
    for i in range(lanes(source)):
        for k in range(lanes(source)):
            target[t0 + k * t_stride + i] = source[s0 + i * s_stride + k]


@numba.njit
def sparse_dot(values, indices, start, end, x):
    """A weighted sum of elements of x."""
    total = x.dtype.type(0)
    for s in range(start, end):
        total += values[s] * x[indices[s]]
    return total
