"""The innermost loops of one sample whose inputs are looked up in registers.

They are written as those of :mod:`sparsekit.kernels.simd`, but only for processors with instructions that pick
bytes (:data:`sparsekit.kernels.processor.LOOKUP_INPUTS`): nothing calls them elsewhere.
"""

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sparsekit.kernels.emitter import INT32, INT64, Emitter
from sparsekit.kernels.processor import LOOKUP_INPUTS, VECTOR_BYTES

LANES = VECTOR_BYTES  # of a step: one for each byte of a vector
STEP = LANES // 4 + LANES  # floats of a step: a byte and a weight for each lane
_AHEAD = 32 * STEP  # floats, 10 KB with 64 lanes: so early a step is asked for
_PARTS = VECTOR_BYTES // 16  # of a vector, between which most instructions move nothing
_BYTES, _SHORTS = ir.VectorType(ir.IntType(8), LANES), ir.VectorType(ir.IntType(16), LANES // 2)


def group_sums(adds: bool, streams: int) -> Callable[..., None]:
    """Make the loop over the groups of a block, with the layouts of :mod:`sparsekit.kernels.lookup_layout`.

    ``f(steps, bounds, first, groups, apart, x, x0, sums, sums0, sums_apart)`` goes through a block of inputs,
    those from x[x0], and for every k below `groups` through the k-th group of each of so many streams. That of
    stream s has number g = first + k + s * apart and the steps bounds[g] to bounds[g + 1]. The sum of its lane l
    goes to sums[sums0 + k * LANES + s * sums_apart + l].

    The inputs are held in registers, by the four bytes of a number. Instructions that pick bytes pick those of as
    many inputs as there are lanes, without a load for each; eight more put the bytes of each number together.
    They do so in fours, which is why the layouts keep the inputs of a step in another order than its weights.

    Parameters
    ----------
    adds : whether sums are added to what is there
    streams : number of streams. The processor foresees what is read of several in turn; of one, steps are asked
        for by instructions
    """

    @intrinsic
    def group_sums(_, steps, bounds, first, groups, apart, x, x0, sums, sums0, sums_apart):
        n = types.intp
        return types.void(steps, bounds, n, n, n, x, n, sums, n, n), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        steps, bounds, x, sums = (emit.data(arguments, k) for k in (0, 1, 5, 7))
        bounds = builder.gep(bounds, [arguments[2]])
        x, sums = builder.gep(x, [arguments[6]]), builder.gep(sums, [arguments[8]])
        pick = _pick_of_256(builder, x) if LOOKUP_INPUTS == 256 else _pick_of_32(builder, x)
        chains = [cgutils.alloca_once(builder, emit.vector) for _ in range(4)]
        loop = emit.loop if VECTOR_BYTES == 64 else emit.rolled_loop  # 16 registers are too few for two steps
        with emit.loop(INT64(0), arguments[3]) as (k, _), emit.loop(INT64(0), INT64(streams)) as (s, _):
            group = builder.add(k, builder.mul(s, arguments[4]))
            place = builder.add(builder.mul(k, INT64(LANES)), builder.mul(s, arguments[9]))
            place = builder.gep(sums, [place])
            for t, chain in enumerate(chains):
                builder.store(emit.load(place, t) if adds else emit.zero, chain)
            begin, end = (builder.load(builder.gep(bounds, [builder.add(group, INT64(k))])) for k in (0, 1))
            with loop(begin, end) as (number, _):
                step = builder.gep(steps, [builder.mul(number, INT64(STEP))])
                for line in range(STEP // 16 if streams == 1 else 0):
                    emit.prefetch(builder.gep(step, [INT64(_AHEAD + 16 * line)]), once=True)
                looked_up = _numbers(builder, pick(_vector_at(builder, step, 0, _BYTES)), emit.vector)
                for t, (chain, inputs) in enumerate(zip(chains, looked_up, strict=True)):
                    emit.add_product(chain, emit.load(step, 1 + t), inputs)
            for t, chain in enumerate(chains):
                emit.store(builder.load(chain), place, t)

    return group_sums


def ranked_sums() -> Callable[..., None]:
    """Make the loop that adds up the sums of a :class:`sparsekit.kernels.lookup_layout.SortedLookup`.

    ``f(out, low, high, ranks, n_ranks, sums, n_sums, n_blocks)`` computes, for r from low to high,

        out[r] = sum over j < n_blocks of sums[j * n_sums + ranks[j * n_ranks + r]]

    a vector of neurons at a time, put together from scalar loads as in :func:`sparsekit.kernels.simd.sparse_dot`.
    """

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


def sums_of_eight() -> Callable[..., None]:
    """Make the loop over what a :class:`sparsekit.kernels.lookup_layout.FixedLookup` leaves over.

    ``f(sums, values, indices, start, end, x)`` computes, for l < 8,

        sums[l] = sum over s from start to end of values[8 * s + l] * x[indices[8 * s + l]]
    """

    @intrinsic
    def sums_of_eight(_, sums, values, indices, start, end, x):
        return types.void(sums, values, indices, types.intp, types.intp, x), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        sums, values, indices, x = (emit.data(arguments, k) for k in (0, 1, 2, 5))
        chains = [cgutils.alloca_once_value(builder, emit.zero) for _ in range(2)]
        for number, group in emit.in_groups(arguments[3], arguments[4], (2, 1)):
            slot = builder.mul(number, INT64(8))
            inputs = list(emit.rows(x, indices, slot, 8 * group, INT64(1), together=True))
            weights = builder.gep(values, [slot])
            for t in range(group):
                emit.add_product(chains[t], emit.load(weights, t), emit.gather(inputs[8 * t : 8 * t + 8]))
        emit.store(emit.total(chains), sums, 0)

    return sums_of_eight


def _vector_at(builder: Any, pointer: Any, offset: int, kind: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(pointer, [INT64(offset)]), kind.as_pointer()), align=1)


def _bytes_of(builder: Any, x: Any, n: int, count: int) -> list[list[Any]]:
    """The four bytes of n * count numbers: bytes k of each n of them as a vector, for k < 4."""
    ints = ir.VectorType(INT32, n)
    numbers = [_vector_at(builder, x, n * k, ints) for k in range(count)]
    kind = ir.VectorType(ir.IntType(8), n)
    return [
        [builder.trunc(builder.lshr(some, ir.Constant(ints, [8 * k] * n)), kind) for some in numbers]
        for k in range(4)
    ]


def _pick_of_256(builder: Any, x: Any) -> Callable[[Any], list[Any]]:
    """Hold 256 inputs in 16 registers; the function picks byte k of those that an index of 64 bytes names, k < 4.

    An instruction of AVX-512 picks 64 of the 128 bytes of two registers.
    """
    kind = ir.FunctionType(_BYTES, [_BYTES] * 3)
    pick = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.qi.512")
    table = _bytes_of(builder, x, 64, 4)

    def picked(index):
        upper_half = builder.icmp_signed("<", index, ir.Constant(_BYTES, None))
        return [
            builder.select(upper_half, builder.call(pick, [c, index, d]), builder.call(pick, [a, index, b]))
            for a, b, c, d in table
        ]

    return picked


def _pick_of_32(builder: Any, x: Any) -> Callable[[Any], list[Any]]:
    """As :func:`_pick_of_256` for 32 inputs in 8 registers and an index of 32 bytes.

    An instruction of AVX2 picks, in each half of a register, of 16 bytes; zero where the highest bit is set.
    """
    kind = ir.FunctionType(_BYTES, [_BYTES] * 2)
    pick = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pshuf.b")
    both_halves = ir.Constant(ir.VectorType(INT32, 32), list(range(16)) * 2)
    halves = _bytes_of(builder, x, 16, 2)
    table = [[builder.shuffle_vector(half, half, both_halves) for half in pair] for pair in halves]
    highest_bit = ir.Constant(_BYTES, [128] * 32)

    def picked(index):
        of_upper = builder.xor(index, highest_bit)
        return [
            builder.or_(builder.call(pick, [lower, index]), builder.call(pick, [upper, of_upper]))
            for lower, upper in table
        ]

    return picked


def _numbers(builder: Any, picked: list[Any], vector: Any) -> Iterator[Any]:
    """The four vectors of numbers whose bytes k are picked[k]."""
    for high in (False, True):
        pairs = [_in_turn(builder, picked[k], picked[k + 1], high) for k in (0, 2)]
        pairs = [builder.bitcast(pair, _SHORTS) for pair in pairs]
        for upper in (False, True):
            yield builder.bitcast(_in_turn(builder, *pairs, upper), vector)


def _in_turn(builder: Any, a: Any, b: Any, high: bool) -> Any:
    """Elements of a and b in turn, of the low or high half of each 16 bytes."""
    lanes, per = a.type.count, a.type.count // _PARTS
    order = [q * per + high * per // 2 + j // 2 + j % 2 * lanes for q in range(_PARTS) for j in range(per)]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, lanes), order))
