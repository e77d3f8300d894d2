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
from sparsekit.kernels.plan import STEP
from sparsekit.kernels.processor import CAN_LOOK_UP, SIMD

_AHEAD = 32 * STEP  # floats, 10 KB: so early a step is asked for
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


def group_sums() -> Callable[..., None]:
    """Make the loop of one sample with the weights in the order of :class:`sparsekit.kernels.plan.Lookup`.

    ``f(steps, bounds, first, n_groups, x, x0, sums, sums0)`` goes through a block of 256 inputs, x[x0 : x0 + 256],
    and its groups, which are those from `first`: group g through the steps bounds[g] to bounds[g + 1]. Lane l of
    the block's k-th group sums into sums[sums0 + 64 * k + l].

    The inputs are held in 16 registers, four for each of the four bytes of a number. An instruction of AVX-512
    picks 64 of the 128 bytes of two registers, so eight of them pick 64 inputs, without a load for each; eight
    more put the bytes of each number together. They do so in fours, which is why `Lookup` keeps the inputs of 64
    lanes in another order than their weights.
    """
    if not CAN_LOOK_UP:
        return plain_loops.no_group_sums

    @intrinsic
    def group_sums(_, steps, bounds, first, n_groups, x, x0, sums, sums0):
        n = types.intp
        return types.void(steps, bounds, n, n, x, n, sums, n), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        steps, bounds, x, sums = (emit.data(arguments, k) for k in (0, 1, 4, 6))
        bounds = builder.gep(bounds, [arguments[2]])
        x, sums = builder.gep(x, [arguments[5]]), builder.gep(sums, [arguments[7]])
        bytes64, ints64 = ir.VectorType(ir.IntType(8), 64), ir.VectorType(INT32, 64)
        pick_kind = ir.FunctionType(bytes64, [bytes64] * 3)
        pick = cgutils.get_or_insert_function(builder.module, pick_kind, "llvm.x86.avx512.vpermi2var.qi.512")

        def vector_at(pointer, offset, kind):
            return builder.load(builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer()), align=1)

        def byte_of_each(half, k):
            return builder.trunc(builder.lshr(half, ir.Constant(ints64, [8 * k] * 64)), bytes64)

        def interleave(a, b, high):
            """Elements of a and b in turn, of the low or high half of each 16 bytes."""
            lanes, per = a.type.count, a.type.count // 4
            order = [q * per + high * per // 2 + j // 2 + j % 2 * lanes for q in range(4) for j in range(per)]
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, lanes), order))

        def look_up(step):
            index = vector_at(step, INT64(0), bytes64)
            upper_half = builder.icmp_signed("<", index, ir.Constant(bytes64, [0] * 64))
            picked = [
                builder.select(upper_half, builder.call(pick, [c, index, d]), builder.call(pick, [a, index, b]))
                for a, b, c, d in table
            ]
            shorts = ir.VectorType(ir.IntType(16), 32)
            for high in (False, True):
                pairs = [interleave(picked[k], picked[k + 1], high) for k in (0, 2)]
                pairs = [builder.bitcast(pair, shorts) for pair in pairs]
                for upper in (False, True):
                    yield builder.bitcast(interleave(*pairs, upper), emit.vector)

        quarters = [vector_at(x, INT64(64 * quarter), ints64) for quarter in range(4)]
        table = [[byte_of_each(quarter, k) for quarter in quarters] for k in range(4)]
        chains = [cgutils.alloca_once(builder, emit.vector) for _ in range(4)]
        with emit.loop(INT64(0), arguments[3]) as (group, _):
            for chain in chains:
                builder.store(emit.zero, chain)
            begin, end = (builder.load(builder.gep(bounds, [builder.add(group, INT64(k))])) for k in (0, 1))
            with emit.loop(begin, end) as (number, _):
                step = builder.gep(steps, [builder.mul(number, INT64(STEP))])
                for line in range(STEP // 16):
                    emit.prefetch(builder.gep(step, [INT64(_AHEAD + 16 * line)]), once=True)
                for t, (chain, looked_up) in enumerate(zip(chains, look_up(step), strict=True)):
                    emit.add_product(chain, emit.load(step, 1 + t), looked_up)
            for t, chain in enumerate(chains):
                emit.store(builder.load(chain), builder.gep(sums, [builder.mul(group, INT64(64))]), t)

    return group_sums


def ranked_sums() -> Callable[..., None]:
    """Make the loop that adds up what :func:`group_sums` left, neuron by neuron.

    ``f(out, low, high, ranks, n_ranks, sums, n_sums, n_blocks)`` computes, for r from low to high,

        out[r] = sum over j < n_blocks of sums[j * n_sums + ranks[j * n_ranks + r]]

    a vector of neurons at a time, put together from scalar loads as in :func:`sparse_dot`.
    """
    if not CAN_LOOK_UP:
        return plain_loops.no_ranked_sums

    @intrinsic
    def ranked_sums(_, out, low, high, ranks, n_ranks, sums, n_sums, n_blocks):
        n = types.intp
        return types.void(out, n, n, ranks, n, sums, n, n), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        out, ranks, sums = (emit.data(arguments, k) for k in (0, 3, 5))
        low, high, n_ranks, n_sums, n_blocks = (arguments[k] for k in (1, 2, 4, 6, 7))
        whole = builder.sub(high, builder.srem(builder.sub(high, low), INT64(emit.lanes)))

        def add_up(r, n, zero, gather):
            total = cgutils.alloca_once_value(builder, zero)
            with emit.loop(INT64(0), n_blocks) as (j, _):
                slot = builder.add(builder.mul(j, n_ranks), r)
                block = builder.gep(sums, [builder.mul(j, n_sums)])
                more = gather(emit.rows(block, ranks, slot, n, INT64(1), together=True))
                builder.store(emit.add(builder.load(total), more), total)
            return builder.load(total)

        with emit.loop(low, whole, emit.lanes) as (r, _):
            emit.store(add_up(r, emit.lanes, emit.zero, emit.gather), builder.gep(out, [r]), 0)
        with emit.loop(whole, high) as (r, _):
            total = add_up(r, 1, ir.Constant(emit.element, 0.0), lambda rows: builder.load(next(rows)))
            builder.store(total, builder.gep(out, [r]))

    return ranked_sums
