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
from sparsekit.kernels.processor import VECTOR_BYTES

LANES = VECTOR_BYTES  # of a step: one for each byte of a vector
STEP = LANES // 4 + LANES  # floats of a step: a byte and a weight for each lane
_AHEAD = 2560  # floats, 10 KB: so early a step is asked for
_PARTS = VECTOR_BYTES // 16  # of a vector, between which most instructions move nothing
_BYTES, _SHORTS, _WORDS, _LONGS = (ir.VectorType(ir.IntType(8 * size), LANES // size) for size in (1, 2, 4, 8))


def group_sums() -> Callable[..., None]:
    """Make the loop over the groups of a block of a :class:`sparsekit.kernels.lookup_layout.SortedLookup`.

    ``f(steps, bounds, first, groups, x, x0, sums, sums0)`` goes through the groups of a block of inputs, those
    from x[x0]. The k-th has the steps bounds[first + k] to bounds[first + k + 1]; the sum of its lane l goes to
    sums[sums0 + k * LANES + l].

    The inputs are held in registers, by the four bytes of a number. Instructions that pick bytes pick those of as
    many inputs as there are lanes, without a load for each; eight more put the bytes of each number together.
    They do so in fours, which is why the layouts keep the inputs of a step in another order than its weights.
    """

    @intrinsic
    def group_sums(_, steps, bounds, first, groups, x, x0, sums, sums0):
        n = types.intp
        return types.void(steps, bounds, n, n, x, n, sums, n), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        steps, bounds, x, sums = (emit.data(arguments, k) for k in (0, 1, 4, 6))
        bounds = builder.gep(bounds, [arguments[2]])
        x, sums = builder.gep(x, [arguments[5]]), builder.gep(sums, [arguments[7]])
        pick = _pick_of_256(builder, x)
        chains = [cgutils.alloca_once(builder, emit.vector) for _ in range(4)]
        with emit.loop(INT64(0), arguments[3]) as (k, _):
            for chain in chains:
                builder.store(emit.zero, chain)
            begin, end = (builder.load(builder.gep(bounds, [builder.add(k, INT64(e))])) for e in (0, 1))
            with emit.loop(begin, end) as (number, _):
                _add_step(emit, steps, number, pick, chains)
            place = builder.gep(sums, [builder.mul(k, INT64(LANES))])
            for t, chain in enumerate(chains):
                emit.store(builder.load(chain), place, t)

    return group_sums


def byte_planes() -> Callable[..., None]:
    """Make the loop that puts the inputs of a :class:`sparsekit.kernels.lookup_layout.SlidingLookup` in order.

    ``f(x, order, n, planes, length, steps)`` sets byte i of planes[k * length :] to byte k of x[order[i]], for
    i < n, a multiple of 32. Meanwhile the first steps are asked for, a line of them for each 16 inputs.
    """

    @intrinsic
    def byte_planes(_, x, order, n, planes, length, steps):
        return types.void(x, order, types.intp, planes, types.intp, steps), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        x, order, planes, steps = (emit.data(arguments, k) for k in (0, 1, 3, 5))
        with emit.loop(INT64(0), arguments[2], LANES) as (first, _):
            for line in range(0, LANES, 16):
                emit.prefetch(builder.gep(steps, [builder.add(first, INT64(line))]))
            numbers = []
            for v in range(4):  # four numbers for each 16 bytes of a plane
                slots = (builder.add(first, INT64(16 * part + 4 * v)) for part in range(_PARTS))
                rows = [row for slot in slots for row in emit.rows(x, order, slot, 4, INT64(1), together=True)]
                numbers.append(builder.bitcast(emit.gather(rows), _BYTES))
            for k, plane in enumerate(_planes(builder, numbers)):
                place = builder.add(builder.mul(arguments[4], INT64(k)), first)
                place = builder.bitcast(builder.gep(planes, [place]), _BYTES.as_pointer())
                builder.store(plane, place, align=1)

    return byte_planes


def window_sums() -> Callable[..., None]:
    """Make the loop over a group of a :class:`sparsekit.kernels.lookup_layout.SlidingLookup`.

    ``f(sums, sums0, steps, starts, begin, end, planes, length)`` goes through the steps from begin to end. Step s
    looks inputs up among the 32 from number starts[s] on; byte k of input i is planes[k * length + i]. The sum of
    lane l goes to sums[sums0 + l].

    As :func:`group_sums`, but the tables, eight vectors, are loaded for every step: a load is free beside the
    instructions that pick bytes.
    """

    @intrinsic
    def window_sums(_, sums, sums0, steps, starts, begin, end, planes, length):
        n = types.intp
        return types.void(sums, n, steps, starts, n, n, planes, n), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        sums, steps, starts, planes = (emit.data(arguments, k) for k in (0, 2, 3, 6))
        planes = [builder.gep(planes, [builder.mul(arguments[7], INT64(k))]) for k in range(4)]
        chains = [cgutils.alloca_once_value(builder, emit.zero) for _ in range(4)]
        with emit.loop(arguments[4], arguments[5]) as (number, _):
            start = builder.zext(builder.load(builder.gep(starts, [number])), INT64)
            tables = [builder.gep(plane, [start]) for plane in planes]
            _add_step(emit, steps, number, lambda index: _picked_of_32(builder, tables, index), chains)
        place = builder.gep(sums, [arguments[1]])
        for t, chain in enumerate(chains):
            emit.store(builder.load(chain), place, t)

    return window_sums


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
    """Make the loop over what a :class:`sparsekit.kernels.lookup_layout.SlidingLookup` leaves over of 8 neurons.

    ``f(sums, sums0, steps, begin, end, x)`` goes through the steps from begin to end; the sum of lane l goes to
    sums[sums0 + l].
    """

    @intrinsic
    def sums_of_eight(_, sums, sums0, steps, begin, end, x):
        n = types.intp
        return types.void(sums, n, steps, n, n, x), generate

    def generate(context, builder, signature, arguments):
        emit = Emitter(context, builder, signature)
        sums, steps, x = (emit.data(arguments, k) for k in (0, 2, 5))
        chains = [cgutils.alloca_once_value(builder, emit.zero) for _ in range(3)]
        with emit.loop(arguments[3], arguments[4]) as (number, _):
            step = _step(emit, steps, number)
            indices = builder.bitcast(step, ir.IntType(16).as_pointer())
            for t, chain in enumerate(chains):
                inputs = emit.gather(emit.rows(x, indices, INT64(8 * t), 8, INT64(1), together=True))
                emit.add_product(chain, emit.load(step, 2 + t), inputs)
        emit.store(emit.total(chains), builder.gep(sums, [arguments[1]]), 0)

    return sums_of_eight


def _step(emit: Emitter, steps: Any, number: Any) -> Any:
    """Pointer to a step; one that comes later is asked for.

    With AVX-512 as read once, which was faster on Zen 5; with AVX2 not, which was no slower on Zen 3, and up to a
    third faster for weights that the second-level cache holds.
    """
    step = emit.builder.gep(steps, [emit.builder.mul(number, INT64(STEP))])
    for line in range(-(-STEP // 16)):
        emit.prefetch(emit.builder.gep(step, [INT64(_AHEAD + 16 * line)]), once=VECTOR_BYTES == 64)
    return step


def _add_step(emit: Emitter, steps: Any, number: Any, pick: Callable[[Any], list[Any]], chains: list[Any]) -> None:
    """Add a step to the four chains, given what picks the bytes of its inputs."""
    builder, step = emit.builder, _step(emit, steps, number)
    looked_up = _numbers(builder, pick(_vector_at(builder, step, 0, _BYTES)), emit.vector)
    for t, (chain, inputs) in enumerate(zip(chains, looked_up, strict=True)):
        emit.add_product(chain, emit.load(step, 1 + t), inputs)


def _vector_at(builder: Any, pointer: Any, offset: int, kind: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(pointer, [INT64(offset)]), kind.as_pointer()), align=1)


def _pick_of_256(builder: Any, x: Any) -> Callable[[Any], list[Any]]:
    """Hold 256 inputs in 16 registers; the function picks byte k of those that an index of 64 bytes names, k < 4.

    An instruction of AVX-512 picks 64 of the 128 bytes of two registers.
    """
    kind = ir.FunctionType(_BYTES, [_BYTES] * 3)
    pick = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpermi2var.qi.512")
    ints = ir.VectorType(INT32, 64)
    numbers = [_vector_at(builder, x, 64 * k, ints) for k in range(4)]
    table = [
        [builder.trunc(builder.lshr(some, ir.Constant(ints, [8 * k] * 64)), _BYTES) for some in numbers]
        for k in range(4)
    ]

    def picked(index):
        upper_half = builder.icmp_signed("<", index, ir.Constant(_BYTES, None))
        return [
            builder.select(upper_half, builder.call(pick, [c, index, d]), builder.call(pick, [a, index, b]))
            for a, b, c, d in table
        ]

    return picked


def _picked_of_32(builder: Any, tables: list[Any], index: Any) -> list[Any]:
    """Byte k of those of 32 inputs that an index of 32 bytes names, for k < 4; tables[k] points to their bytes k.

    An instruction of AVX2 picks, in each half of a register, of 16 bytes; zero where the highest bit is set.
    """
    kind = ir.FunctionType(_BYTES, [_BYTES] * 2)
    pick = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pshuf.b")
    sixteen, both_halves = ir.VectorType(ir.IntType(8), 16), list(range(16)) * 2
    of_upper = builder.xor(index, ir.Constant(_BYTES, [128] * 32))

    def picked(table, first, places):
        half = _vector_at(builder, table, first, sixteen)
        table = builder.shuffle_vector(half, half, ir.Constant(ir.VectorType(INT32, 32), both_halves))
        return builder.call(pick, [table, places])

    return [builder.or_(picked(table, 0, index), picked(table, 16, of_upper)) for table in tables]


def _numbers(builder: Any, picked: list[Any], vector: Any) -> Iterator[Any]:
    """The four vectors of numbers whose bytes k are picked[k]."""
    for high in (False, True):
        pairs = [_in_turn(builder, picked[k], picked[k + 1], high) for k in (0, 2)]
        pairs = [builder.bitcast(pair, _SHORTS) for pair in pairs]
        for upper in (False, True):
            yield builder.bitcast(_in_turn(builder, *pairs, upper), vector)


def _planes(builder: Any, numbers: list[Any]) -> Iterator[Any]:
    """The four vectors of bytes k of the numbers, those of the first 16 bytes of each vector before the others."""
    order = [16 * q + 4 * (j % 4) + j // 4 for q in range(_PARTS) for j in range(16)]
    order = ir.Constant(ir.VectorType(INT32, LANES), order)
    a, b, c, d = (builder.bitcast(builder.shuffle_vector(some, some, order), _WORDS) for some in numbers)
    for high in (False, True):
        ab, cd = (builder.bitcast(_in_turn(builder, *pair, high), _LONGS) for pair in ((a, b), (c, d)))
        for upper in (False, True):
            yield builder.bitcast(_in_turn(builder, ab, cd, upper), _BYTES)


def _in_turn(builder: Any, a: Any, b: Any, high: bool) -> Any:
    """Elements of a and b in turn, of the low or high half of each 16 bytes."""
    lanes, per = a.type.count, a.type.count // _PARTS
    order = [q * per + high * per // 2 + j // 2 + j % 2 * lanes for q in range(_PARTS) for j in range(per)]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, lanes), order))
