"""The innermost loops, with their running sums held in vector registers.

LLVM vectorises loops by itself, but it loads and stores a slice of an array in every iteration. The intrinsics
here emit the loop with its accumulators as local variables, which LLVM keeps in registers. They are written with
:mod:`sparsekit.kernels.emitter`, for vectors of any width.

On other processors, and with NUMBA_DISABLE_JIT=1, those of :mod:`sparsekit.kernels.plain_loops` take their place.
Both add the same products in another order: for a sum of n products the results differ by at most
2 n eps sum |products|.

All arrays are flat. Offsets count elements; nothing is checked.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sparsekit.kernels import plain_loops
from sparsekit.kernels.emitter import INT32, INT64, Emitter
from sparsekit.kernels.processor import SIMD

_AHEAD_OF_DOT = 1024  # weights: so early they are


def weighted_rows(vectors: int, chains: int, part: int = 1) -> Callable[..., None]:
    """Make the loop of the forward product: a weighted sum of rows of x, a register tile wide.

    ``f(y, y0, values, indices, start, end, x, x0, stride)`` computes, for the slots s from start to end,

        y[y0 : y0 + width] = sum of values[s] * x[x0 + indices[s] * stride :][:width]

    Parameters
    ----------
    vectors : width of the tile in vectors
    chains : independent running sums of the tile, since an addition waits for the one before it
    part : divides the lanes of a vector, for batches narrower than one; the width is :func:`lanes` times `vectors`
    """
    if not SIMD:
        return plain_loops.weighted_rows(vectors, part)

    @intrinsic
    def weighted_rows(_, y, y0, values, indices, start, end, x, x0, stride):
        n = types.intp
        return types.void(y, n, values, indices, n, n, x, n, n), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature, part)
        y, values, indices, x = (emit.data(arguments, k) for k in (0, 2, 3, 6))
        y, x = builder.gep(y, [arguments[1]]), builder.gep(x, [arguments[7]])
        start, end, stride = arguments[4], arguments[5], arguments[8]
        tile = [emit.zero] * vectors
        sums = emit.weighted_sum(tile, chains, values, indices, start, end, x, stride, emit.picks(8))
        for t, total in enumerate(sums):
            emit.store(total, y, t)

    return weighted_rows


def weighted_runs(vectors: int, chains: int) -> Callable[..., None]:
    """Make the loop over the runs of a block of inputs, which adds a weighted sum of rows of x for each of them.

    ``f(y, y0, y_stride, values, indices, runs, low, high, x, x0, stride, ahead)``, with runs = (starts, ends,
    rows), computes for the runs q from low to high and the slots s from starts[q] to ends[q],

        y[y0 + rows[q] * y_stride :][:width] += sum of values[s] * x[x0 + indices[s] * stride :][:width]

    Meanwhile it asks for cache lines that are read next: with ahead = (a, a0, row_step, n_rows, step, n), for
    those at a[a0 + i * row_step + k * step], i < n_rows and k < n, as far as there are runs i.

    Parameters as in :func:`weighted_rows`.
    """
    if not SIMD:
        return plain_loops.weighted_runs(vectors)

    @intrinsic
    def weighted_runs(_, y, y0, y_stride, values, indices, runs, low, high, x, x0, stride, ahead):
        n = types.intp
        return types.void(y, n, n, values, indices, runs, n, n, x, n, n, ahead), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        y = builder.gep(emit.data(arguments, 0), [arguments[1]])
        with emit.sums_of_runs(arguments, y, vectors, chains) as (row, sums):
            place = builder.gep(y, [builder.mul(row, arguments[2])])
            for t, total in enumerate(sums):
                emit.store(total, place, t)

    return weighted_runs


def final_runs(vectors: int, chains: int) -> Callable[..., None]:
    """Make the loop of :func:`weighted_runs` for the last block of inputs, which writes the sums elsewhere.

    ``f(*arguments of weighted_runs, to)``, with to = (bound, z, z0, z_stride, z_step, together, past), writes the
    sums of row r, but at least `bound`, to z[z0 + r * z_stride :]: as many vectors side by side as `together`, a
    power of two, says, the next ones z_step further, and so on. If `past`, they go to memory past the caches, in
    whole cache lines; before another thread reads them :func:`fence` must be called.
    """
    if not SIMD:
        return plain_loops.final_runs(vectors)

    @intrinsic
    def final_runs(_, y, y0, y_stride, values, indices, runs, low, high, x, x0, stride, ahead, to):
        n = types.intp
        return types.void(y, n, n, values, indices, runs, n, n, x, n, n, ahead, to), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        y = builder.gep(emit.data(arguments, 0), [arguments[1]])
        bound, z, z0, z_stride, z_step, together, past = emit.unpacked(arguments, 12)
        z, bound = builder.gep(z, [z0]), emit.everywhere(bound)
        shift, rest = builder.cttz(together, ir.IntType(1)(1)), builder.sub(together, INT64(1))
        offsets = []
        for t in range(vectors):
            group, k = builder.lshr(INT64(t), shift), builder.and_(INT64(t), rest)
            offsets.append(builder.add(builder.mul(group, z_step), builder.mul(k, INT64(emit.lanes))))
        with emit.sums_of_runs(arguments, y, vectors, chains) as (row, sums):
            target = builder.gep(z, [builder.mul(row, z_stride)])
            places = [builder.gep(target, [offset]) for offset in offsets]
            sums = [builder.select(builder.fcmp_ordered("<", total, bound), bound, total) for total in sums]
            with builder.if_else(past) as (past_caches, through_them):
                with past_caches:
                    for total, place in zip(sums, places, strict=True):
                        emit.store_past_caches(total, place)
                with through_them:
                    for total, place in zip(sums, places, strict=True):
                        emit.store(total, place, 0)

    return final_runs


def fence() -> Callable[..., None]:
    """Make what waits until everything that was written, past the caches too, can be read by other threads."""
    if not SIMD:
        return plain_loops.fence

    @intrinsic
    def fence(_):
        return types.void(), generate

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")

    return fence


def run_products(vectors: int, part: int = 1) -> Callable[..., None]:
    """Make the loop of the weight gradient: in each run one row of g times many of x, for a part of the batch.

    ``f(out, indices, runs, low, high, g, g0, g_stride, x, x0, stride)``, with runs = (starts, ends, rows),
    computes for the runs q from low to high and each slot s from starts[q] to ends[q],

        out[s] += sum over t < width of g[g0 + rows[q] * g_stride + t] * x[x0 + indices[s] * stride + t]

    with the part of g in registers. The width is :func:`lanes` times `vectors`, divided by `part`.
    """
    if not SIMD:
        return plain_loops.run_products(vectors, part)

    @intrinsic
    def run_products(_, out, indices, runs, low, high, g, g0, g_stride, x, x0, stride):
        n = types.intp
        return types.void(out, indices, runs, n, n, g, n, n, x, n, n), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature, part)
        out, indices, g, x = (emit.data(arguments, k) for k in (0, 1, 5, 8))
        g, x = builder.gep(g, [arguments[6]]), builder.gep(x, [arguments[9]])
        with emit.each_run(emit.unpacked(arguments, 2), arguments[3], arguments[4]) as (_, start, end, row):
            row_of_g = builder.gep(g, [builder.mul(row, arguments[7])])
            held = [emit.load(row_of_g, t) for t in range(vectors)]
            for slot, group in emit.in_groups(start, end, (emit.at_once, 1)):
                reads = emit.rows(x, indices, slot, group, arguments[10], together=True)
                emit.add_sums([emit.product(held, read) for read in reads], builder.gep(out, [slot]))

    return run_products


def copy_rows(vectors: int) -> Callable[..., None]:
    """Make the loop that copies a tile.

    ``f(target, t0, t_stride, source, s0, s_stride, n_rows)`` computes, for i < n_rows,

        target[t0 + i * t_stride :][:width] = source[s0 + i * s_stride :][:width]

    The width is :func:`lanes` times `vectors`. Few instructions a row let the processor fetch many rows at a time.
    """
    if not SIMD:
        return plain_loops.copy_rows(vectors)

    @intrinsic
    def copy_rows(_, target, t0, t_stride, source, s0, s_stride, n_rows):
        n = types.intp
        return types.void(target, n, n, source, n, n, n), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        target = builder.gep(emit.data(arguments, 0), [arguments[1]])
        source = builder.gep(emit.data(arguments, 3), [arguments[4]])
        with emit.loop(INT64(0), arguments[6]) as (i, _):
            write = builder.gep(target, [builder.mul(i, arguments[2])])
            read = builder.gep(source, [builder.mul(i, arguments[5])])
            for t in range(vectors):
                emit.store(emit.load(read, t), write, t)

    return copy_rows


def copy_runs() -> Callable[..., None]:
    """Make the loop that puts runs one behind the other.

    ``f(target, indptr, source, starts, low, high)`` computes, for the runs q from low to high,

        target[indptr[q] : indptr[q + 1]] = source[starts[q] :][: indptr[q + 1] - indptr[q]]
    """
    if not SIMD:
        return plain_loops.copy_runs

    @intrinsic
    def copy_runs(_, target, indptr, source, starts, low, high):
        n = types.intp
        return types.void(target, indptr, source, starts, n, n), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        target, indptr, source, starts = (emit.data(arguments, k) for k in range(4))
        with emit.loop(arguments[4], arguments[5]) as (q, _):
            first, end = (builder.load(builder.gep(indptr, [builder.add(q, INT64(k))])) for k in (0, 1))
            read = builder.gep(source, [builder.sub(builder.load(builder.gep(starts, [q])), first)])
            for slot, group in emit.in_groups(first, end, (8, 4, 1)):
                emit.copy(builder.gep(read, [slot]), builder.gep(target, [slot]), group)

    return copy_runs


def transpose_square() -> Callable[..., None]:
    """Make the loop that transposes a square as wide as a vector.

    ``f(target, t0, t_stride, source, s0, s_stride)`` computes, for i and k below :func:`lanes`,

        target[t0 + k * t_stride + i] = source[s0 + i * s_stride + k]

    Rows that lie 1, 2, 4, ... apart exchange every other 1, 2, 4, ... elements with each other.
    """
    if not SIMD:
        return plain_loops.transpose_square

    @intrinsic
    def transpose_square(_, target, t0, t_stride, source, s0, s_stride):
        n = types.intp
        return types.void(target, n, n, source, n, n), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        target = builder.gep(emit.data(arguments, 0), [arguments[1]])
        source = builder.gep(emit.data(arguments, 3), [arguments[4]])
        n, apart = emit.lanes, 1
        rows = [emit.load(builder.gep(source, [builder.mul(INT64(i), arguments[5])]), 0) for i in range(n)]
        while apart < n:
            for i in (i for i in range(n) if not i & apart):
                upper, lower = rows[i], rows[i + apart]
                keep = [n + k - apart if k & apart else k for k in range(n)]
                give = [n + k if k & apart else k + apart for k in range(n)]
                masks = (ir.Constant(ir.VectorType(INT32, n), order) for order in (keep, give))
                rows[i], rows[i + apart] = (builder.shuffle_vector(upper, lower, mask) for mask in masks)
            apart *= 2
        for k, row in enumerate(rows):
            emit.store(row, builder.gep(target, [builder.mul(INT64(k), arguments[2])]), 0)

    return transpose_square


def sparse_dot() -> Callable[..., Any]:
    """Make the loop of one sample: ``f(values, indices, start, end, x)`` sums values[s] * x[indices[s]].

    Vectors of x are gathered, which is faster than scalar products: the weights are loaded a vector at a time.
    """
    if not SIMD:
        return plain_loops.sparse_dot

    @intrinsic
    def sparse_dot(_, values, indices, start, end, x):
        return values.dtype(values, indices, types.intp, types.intp, x), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        values, indices, x = (emit.data(arguments, k) for k in (0, 1, 4))
        sizes = sorted({max(16, emit.lanes), emit.lanes, 1}, reverse=True)
        sums = [cgutils.alloca_once_value(builder, emit.zero) for _ in range(sizes[0] // emit.lanes)]
        one_by_one = cgutils.alloca_once_value(builder, ir.Constant(emit.element, 0.0))
        for slot, group in emit.in_groups(arguments[2], arguments[3], tuple(sizes)):
            rows = list(emit.rows(x, indices, slot, group, INT64(1), together=True))
            weights = builder.gep(values, [slot])
            if group == 1:
                emit.add_product(one_by_one, builder.load(weights), builder.load(rows[0]))
                continue
            emit.prefetch(builder.gep(indices, [builder.add(slot, INT64(_AHEAD_OF_DOT))]), once=True)
            for line in range(0, group, 64 // emit.size):
                later = builder.add(slot, INT64(_AHEAD_OF_DOT + line))
                emit.prefetch(builder.gep(values, [later]), once=True)
            for t in range(group // emit.lanes):
                gathered = emit.gather(rows[t * emit.lanes : (t + 1) * emit.lanes])
                emit.add_product(sums[t], emit.load(weights, t), gathered)
        return emit.add(emit.across(emit.total(sums)), builder.load(one_by_one))

    return sparse_dot
