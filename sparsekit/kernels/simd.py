"""The innermost loops, with their running sums held in vector registers.

LLVM vectorises loops by itself, but it loads and stores a slice of an array in every iteration. The intrinsics
here emit the loop with its accumulators as local variables, which LLVM keeps in registers. They are written in
LLVM's portable vector types: one source serves 64-byte (AVX-512), 32-byte (AVX2) and 16-byte (SSE2, NEON)
vectors.

On other processors, and with NUMBA_DISABLE_JIT=1, the plain loops below take their place. Both add the same
products in another order: for a sum of n products the results differ by at most 2 n eps sum |products|.

All arrays are flat. Offsets count elements; nothing is checked.
"""

import platform
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, overload

_AHEAD = 2048  # weights that are asked for before they are needed, 8 KiB
_FAST = ("contract", "reassoc", "nsz")  # NaN and Inf keep their meaning
_Value = Any  # a value of LLVM's; llvmlite comes without types
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


def _features() -> dict[str, bool]:
    """What the processor can that Numba compiles for: this one, or what NUMBA_CPU_FEATURES names."""
    chosen: str | None = config.CPU_FEATURES  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is None:
        chosen = get_host_cpu_features()  # without what NUMBA_ENABLE_AVX=0 leaves out
    return {name[1:]: name[0] == "+" for name in chosen.split(",") if name}


def _vector_bytes() -> int:
    """Width of the registers of this processor; 0 where the intrinsics are not used."""
    compiled = not config.DISABLE_JIT  # pyright: ignore[reportAttributeAccessIssue]
    if not compiled or platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64"):
        return 0
    return 64 if _features().get("avx512f") else 32 if _features().get("avx2") else 16


_SIMD = _vector_bytes() > 0
VECTOR_BYTES = _vector_bytes() or 64
CAN_LOOK_UP = VECTOR_BYTES == 64 and _SIMD and bool(_features().get("avx512vbmi"))


def weighted_rows(vectors: int, chains: int, part: int = 1, accumulate: bool = False) -> Callable[..., None]:
    """Make the loop of the forward product: a weighted sum of rows of x, a register tile wide.

    ``f(y, y0, values, indices, start, end, x, x0, stride)`` computes, for the slots s from start to end,

        y[y0 : y0 + width] = sum of values[s] * x[x0 + indices[s] * stride :][:width]

    Parameters
    ----------
    vectors : width of the tile in vectors
    chains : independent running sums of the tile, since an addition waits for the one before it
    part : divides the lanes of a vector, for batches narrower than one; the width is :func:`lanes` times `vectors`
    accumulate : add to y instead of replacing it
    """
    if not _SIMD:
        return _plain_weighted_rows(vectors, part, accumulate)

    @intrinsic
    def weighted_rows(_, y, y0, values, indices, start, end, x, x0, stride):
        n = types.intp
        return types.void(y, n, values, indices, n, n, x, n, n), generate

    def generate(context, builder, signature, arguments):
        emit = _Emitter(context, builder, signature, part)
        y, values, indices, x = (emit.data(arguments, k) for k in (0, 2, 3, 6))
        y = builder.gep(y, [arguments[1]])
        start, end, stride = arguments[4], arguments[5], arguments[8]
        x = builder.gep(x, [arguments[7]])
        tile = [cgutils.alloca_once_value(builder, emit.zero) for _ in range(vectors * chains)]
        if accumulate:
            for t in range(vectors):
                builder.store(emit.load(y, t), tile[t])

        def step(slot, chain, weight):
            row = emit.row(x, indices, slot, stride)
            for t in range(vectors):
                emit.add_product(tile[chain * vectors + t], weight, emit.load(row, t))

        for group in (8, 4, 1):
            whole = builder.sub(end, builder.srem(builder.sub(end, start), _INT64(group)))
            with emit.loop(start, whole, group) as (slot, _):
                weights = emit.group(values, slot, group)
                for k in range(group):
                    step(builder.add(slot, _INT64(k)), k % chains, emit.splat(weights, k))
            start = whole
        for t in range(vectors):
            emit.store(emit.total(tile[t::vectors]), y, t)

    return weighted_rows


def row_products(vectors: int, part: int = 1) -> Callable[..., None]:
    """Make the loop of the weight gradient: one row of g times many rows of x, over a part of the batch.

    ``f(out, indices, start, end, g, g0, x, x0, stride)`` computes, for each slot s from start to end,

        out[s] += sum over t < width of g[g0 + t] * x[x0 + indices[s] * stride + t]

    with the part of g in registers. The width is :func:`lanes` times `vectors`, divided by `part`.
    """
    if not _SIMD:
        return _plain_row_products(vectors, part)

    @intrinsic
    def row_products(_, out, indices, start, end, g, g0, x, x0, stride):
        n = types.intp
        return types.void(out, indices, n, n, g, n, x, n, n), generate

    def generate(context, builder, signature, arguments):
        emit = _Emitter(context, builder, signature, part)
        out, indices, g, x = (emit.data(arguments, k) for k in (0, 1, 4, 6))
        x = builder.gep(x, [arguments[7]])
        g = builder.gep(g, [arguments[5]])
        held = [emit.load(g, t) for t in range(vectors)]
        with emit.loop(arguments[2], arguments[3]) as (slot, _):
            row = emit.row(x, indices, slot, arguments[8])
            sums = [cgutils.alloca_once_value(builder, emit.zero) for _ in range(min(2, vectors))]
            for t in range(vectors):
                emit.add_product(sums[t % 2], held[t], emit.load(row, t))
            place = builder.gep(out, [slot])
            builder.store(builder.fadd(builder.load(place), emit.across(emit.total(sums)), flags=_FAST), place)

    return row_products


def copy_rows(vectors: int) -> Callable[..., None]:
    """Make the loop that copies a tile.

    ``f(target, t0, t_stride, source, s0, s_stride, n_rows)`` computes, for i < n_rows,

        target[t0 + i * t_stride :][:width] = source[s0 + i * s_stride :][:width]

    The width is :func:`lanes` times `vectors`. Few instructions a row let the processor fetch many rows at a time.
    """
    if not _SIMD:
        return _plain_copy_rows(vectors)

    @intrinsic
    def copy_rows(_, target, t0, t_stride, source, s0, s_stride, n_rows):
        n = types.intp
        return types.void(target, n, n, source, n, n, n), generate

    def generate(context, builder, signature, arguments):
        emit = _Emitter(context, builder, signature)
        target = builder.gep(emit.data(arguments, 0), [arguments[1]])
        source = builder.gep(emit.data(arguments, 3), [arguments[4]])
        with emit.loop(_INT64(0), arguments[6]) as (i, _):
            write = builder.gep(target, [builder.mul(i, arguments[2])])
            read = builder.gep(source, [builder.mul(i, arguments[5])])
            for t in range(vectors):
                emit.store(emit.load(read, t), write, t)

    return copy_rows


def sparse_dot() -> Callable[..., Any]:
    """Make the loop of one sample: ``f(values, indices, start, end, x)`` sums values[s] * x[indices[s]].

    A vector of x is put together from scalar loads, which is faster than the gather instruction, and than scalar
    products: the weights are loaded a vector at a time.
    """
    if not _SIMD:
        return _plain_sparse_dot

    @intrinsic
    def sparse_dot(_, values, indices, start, end, x):
        return values.dtype(values, indices, types.intp, types.intp, x), generate

    def generate(context, builder, signature, arguments):
        emit = _Emitter(context, builder, signature)
        values, indices, x = (emit.data(arguments, k) for k in (0, 1, 4))
        start, end = arguments[2], arguments[3]
        total = cgutils.alloca_once_value(builder, emit.zero)
        whole = builder.sub(end, builder.srem(builder.sub(end, start), _INT64(emit.lanes)))
        with emit.loop(start, whole, emit.lanes) as (slot, _):
            gathered = ir.Constant(emit.vector, ir.Undefined)
            for lane in range(emit.lanes):
                element = builder.load(emit.row(x, indices, builder.add(slot, _INT64(lane)), _INT64(1)))
                gathered = builder.insert_element(gathered, element, _INT32(lane))
            emit.add_product(total, emit.load(builder.gep(values, [slot]), 0), gathered)
        result = cgutils.alloca_once_value(builder, emit.across(builder.load(total)))
        with emit.loop(whole, end) as (slot, _):
            element = builder.load(emit.row(x, indices, slot, _INT64(1)))
            emit.add_product(result, builder.load(builder.gep(values, [slot])), element)
        return builder.load(result)

    return sparse_dot


def group_sums() -> Callable[..., None]:
    """Make the loop of one sample with the weights in the order of :class:`sparsekit.kernels.plan.Lookup`.

    ``f(values, inputs, lengths, first, n_groups, start, x, x0, sums, sums0)`` goes through a block of 128 inputs,
    x[x0 : x0 + 128]; its weights begin at slot `start`, its groups are those from `first`. Lane l of group g sums
    into sums[sums0 + 64 * g + l].

    The inputs are held in 8 registers, two for each of the four bytes of a number. An instruction of AVX-512
    picks 64 of the 128 bytes of two registers, so four of them pick 64 inputs, without a load for each; eight
    more put the bytes of each number together. They do so in fours, which is why `Lookup` keeps the inputs of 64
    lanes in another order than their weights.
    """
    if not CAN_LOOK_UP:
        return _no_group_sums

    @intrinsic
    def group_sums(_, values, inputs, lengths, first, n_groups, start, x, x0, sums, sums0):
        n = types.intp
        return types.void(values, inputs, lengths, n, n, n, x, n, sums, n), generate

    def generate(context, builder, signature, arguments):
        emit = _Emitter(context, builder, signature)
        values, inputs, lengths, x, sums = (emit.data(arguments, k) for k in (0, 1, 2, 6, 8))
        x, sums = builder.gep(x, [arguments[7]]), builder.gep(sums, [arguments[9]])
        bytes64, ints64 = ir.VectorType(ir.IntType(8), 64), ir.VectorType(_INT32, 64)
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
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT32, lanes), order))

        def look_up(slot):
            index = vector_at(inputs, slot, bytes64)
            picked = [builder.call(pick, [low, index, high]) for low, high in table]
            shorts = ir.VectorType(ir.IntType(16), 32)
            for high in (False, True):
                pairs = [interleave(picked[k], picked[k + 1], high) for k in (0, 2)]
                pairs = [builder.bitcast(pair, shorts) for pair in pairs]
                for upper in (False, True):
                    yield builder.bitcast(interleave(*pairs, upper), emit.vector)

        halves = [vector_at(x, _INT64(first), ints64) for first in (0, 64)]
        table = [[byte_of_each(half, k) for half in halves] for k in range(4)]
        position = cgutils.alloca_once_value(builder, arguments[5])
        chains = [cgutils.alloca_once(builder, emit.vector) for _ in range(4)]
        with emit.loop(_INT64(0), arguments[4]) as (group, _):
            for chain in chains:
                builder.store(emit.zero, chain)
            length = builder.zext(builder.load(builder.gep(lengths, [builder.add(arguments[3], group)])), _INT64)
            begin = builder.load(position)
            end = builder.add(begin, builder.mul(length, _INT64(64)))
            with emit.loop(begin, end, 64) as (slot, _):
                emit.prefetch(builder.gep(inputs, [builder.add(slot, _INT64(_AHEAD))]))
                weights = builder.gep(values, [slot])
                for t, (chain, looked_up) in enumerate(zip(chains, look_up(slot), strict=True)):
                    emit.prefetch(builder.gep(weights, [_INT64(_AHEAD + 16 * t)]))
                    emit.add_product(chain, emit.load(weights, t), looked_up)
            for t, chain in enumerate(chains):
                emit.store(builder.load(chain), builder.gep(sums, [builder.mul(group, _INT64(64))]), t)
            builder.store(end, position)

    return group_sums


class _Emitter:
    """What the intrinsics share: loads, stores, loops and sums in LLVM's vector types."""

    def __init__(self, context: Any, builder: Any, signature: Any, part: int = 1) -> None:
        self.context, self.builder, self.signature = context, builder, signature
        self.element = context.get_value_type(signature.args[0].dtype)
        self.size = context.get_abi_sizeof(self.element)
        self.lanes = max(1, VECTOR_BYTES // self.size // part)
        self.vector = ir.VectorType(self.element, self.lanes)
        self.zero = ir.Constant(self.vector, None)

    def data(self, arguments: Any, k: int) -> _Value:
        """Pointer to the first element of the k-th argument."""
        return self.context.make_array(self.signature.args[k])(self.context, self.builder, arguments[k]).data

    def prefetch(self, pointer: _Value) -> None:
        """Ask for a cache line that is read soon; beyond an array it does nothing."""
        pointer = self.builder.bitcast(pointer, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        self.builder.call(function, [pointer, _INT32(0), _INT32(3), _INT32(1)])

    def loop(self, start: _Value, end: _Value, step: int = 1) -> Any:
        return cgutils.for_range_slice(self.builder, start, end, _INT64(step), intp=_INT64)

    def row(self, x: _Value, indices: _Value, slot: _Value, stride: _Value) -> _Value:
        """Pointer to x[indices[slot] * stride]; indices are never negative."""
        index = self.builder.zext(self.builder.load(self.builder.gep(indices, [slot])), _INT64)
        return self.builder.gep(x, [self.builder.mul(index, stride)])

    def load(self, pointer: _Value, t: int) -> _Value:
        """The t-th vector from `pointer`, which need not be aligned."""
        return self.builder.load(self._vector_pointer(pointer, t), align=self.size)

    def store(self, value: _Value, pointer: _Value, t: int) -> None:
        self.builder.store(value, self._vector_pointer(pointer, t), align=self.size)

    def _vector_pointer(self, pointer: _Value, t: int) -> _Value:
        place = self.builder.gep(pointer, [_INT64(t * self.lanes)])
        return self.builder.bitcast(place, self.vector.as_pointer())

    def group(self, values: _Value, slot: _Value, size: int) -> _Value:
        """The vector values[slot : slot + size]."""
        kind = ir.VectorType(self.element, size)
        pointer = self.builder.bitcast(self.builder.gep(values, [slot]), kind.as_pointer())
        weights = self.builder.load(pointer, align=self.size)
        if VECTOR_BYTES == 64 and size > 1:
            # Loads are what bounds the loop. An empty instruction keeps LLVM from loading each weight once more.
            weights = self.builder.asm(ir.FunctionType(kind, [kind]), "", "=v,0", [weights], False)
        return weights

    def splat(self, group: _Value, k: int) -> _Value:
        """Element k of a group in every lane."""
        lanes = ir.Constant(ir.VectorType(_INT32, self.lanes), [k] * self.lanes)
        return self.builder.shuffle_vector(group, ir.Constant(group.type, ir.Undefined), lanes)

    def add_product(self, place: _Value, a: _Value, b: _Value) -> None:
        """place += a * b, contracted to one fused multiply-add where the processor has it."""
        product = self.builder.fmul(a, b, flags=_FAST)
        self.builder.store(self.builder.fadd(self.builder.load(place), product, flags=_FAST), place)

    def total(self, places: list[_Value]) -> _Value:
        """The sum of what the places hold."""
        result = self.builder.load(places[0])
        for place in places[1:]:
            result = self.builder.fadd(result, self.builder.load(place), flags=_FAST)
        return result

    def across(self, vector: _Value) -> _Value:
        """The sum of the lanes of a vector."""
        kind = ir.FunctionType(self.element, [self.element, self.vector])
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f{8 * self.size}"
        reduce = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(reduce, [ir.Constant(self.element, 0.0), vector], fastmath=_FAST)


def lanes(array: Any) -> int:
    """Elements of `array` in one vector; in compiled code a constant, by which LLVM unrolls loops."""
    return VECTOR_BYTES // array.itemsize


@overload(lanes)
def _lanes(array):
    n = VECTOR_BYTES * 8 // array.dtype.bitwidth
    return lambda array: n


def _plain_weighted_rows(vectors: int, part: int, accumulate: bool) -> Callable[..., None]:
    @numba.njit
    def weighted_rows(y, y0, values, indices, start, end, x, x0, stride):
        width = vectors * max(1, lanes(x) // part)
        if not accumulate:
            y[y0 : y0 + width] = 0
        for s in range(start, end):
            first = x0 + int(indices[s]) * stride
            for t in range(width):
                y[y0 + t] += values[s] * x[first + t]

    return weighted_rows


def _plain_row_products(vectors: int, part: int) -> Callable[..., None]:
    @numba.njit
    def row_products(out, indices, start, end, g, g0, x, x0, stride):
        for s in range(start, end):
            first = x0 + int(indices[s]) * stride
            for t in range(vectors * max(1, lanes(x) // part)):
                out[s] += g[g0 + t] * x[first + t]

    return row_products


def _plain_copy_rows(vectors: int) -> Callable[..., None]:
    @numba.njit
    def copy_rows(target, t0, t_stride, source, s0, s_stride, n_rows):
        for i in range(n_rows):
            for t in range(vectors * lanes(source)):
                target[t0 + i * t_stride + t] = source[s0 + i * s_stride + t]

    return copy_rows


@numba.njit
def _no_group_sums(values, inputs, lengths, first, n_groups, start, x, x0, sums, sums0):
    """Never called: :data:`CAN_LOOK_UP` is False."""


@numba.njit
def _plain_sparse_dot(values, indices, start, end, x):
    total = x.dtype.type(0)
    for s in range(start, end):
        total += values[s] * x[indices[s]]
    return total
