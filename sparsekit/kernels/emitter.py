"""What the loops of :mod:`sparsekit.kernels.simd` are written with: loads, stores and sums in LLVM's vectors.

Vector types of LLVM's are portable: one source serves 64-byte (AVX-512), 32-byte (AVX2) and 16-byte (SSE2, NEON)
vectors.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from sparsekit.kernels.processor import VECTOR_BYTES

INT32, INT64 = ir.IntType(32), ir.IntType(64)
_FAST = ("contract", "reassoc", "nsz")  # NaN and Inf keep their meaning
_Value = Any  # a value of LLVM's; llvmlite comes without types


class Emitter:
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

    def unpacked(self, arguments: Any, k: int) -> list[_Value]:
        """The elements of the k-th argument, a tuple: pointers for arrays, integers as wide as pointers."""
        values = []
        kinds = self.signature.args[k].types
        for kind, value in zip(kinds, cgutils.unpack_tuple(self.builder, arguments[k]), strict=True):
            if isinstance(kind, types.Array):
                value = self.context.make_array(kind)(self.context, self.builder, value).data
            elif isinstance(kind, types.Integer):
                value = self.context.cast(self.builder, value, kind, types.intp)
            elif kind == types.boolean:
                value = self.builder.trunc(value, ir.IntType(1)) if value.type.width > 1 else value
            values.append(value)
        return values

    @contextmanager
    def each_run(
        self, runs: list[_Value], low: _Value, high: _Value
    ) -> Iterator[tuple[_Value, _Value, _Value, _Value]]:
        """A loop over the runs from low to high: the number of the run, its first and last slot, and its row."""
        with self.loop(low, high) as (q, _):
            start, end, row = (self.builder.load(self.builder.gep(array, [q])) for array in runs)
            yield self.builder.sub(q, low), start, end, self.builder.zext(row, INT64)

    @contextmanager
    def sums_of_runs(
        self, arguments: Any, y: _Value, vectors: int, chains: int
    ) -> Iterator[tuple[_Value, list[_Value]]]:
        """The loop of :func:`weighted_runs`: the row of each run, and what is in y plus its weighted sum."""
        values, indices, x = (self.data(arguments, k) for k in (3, 4, 8))
        ahead, ahead0, row_step, n_rows, step, n_lines = self.unpacked(arguments, 11)
        x, ahead = self.builder.gep(x, [arguments[9]]), self.builder.gep(ahead, [ahead0])
        picks = self.picks(8)
        with self.each_run(self.unpacked(arguments, 5), arguments[6], arguments[7]) as (number, start, end, row):
            place = self.builder.gep(y, [self.builder.mul(row, arguments[2])])
            tile = [self.load(place, t) for t in range(vectors)]
            with self.builder.if_then(self.builder.icmp_signed("<", number, n_rows)):
                next_row = self.builder.gep(ahead, [self.builder.mul(number, row_step)])
                with self.loop(INT64(0), n_lines) as (k, _):
                    self.prefetch(self.builder.gep(next_row, [self.builder.mul(k, step)]))
            yield row, self.weighted_sum(tile, chains, values, indices, start, end, x, arguments[10], picks)

    def everywhere(self, value: _Value) -> _Value:
        """The value in every lane."""
        vector = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), value, INT32(0))
        lanes = ir.Constant(ir.VectorType(INT32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(vector, ir.Constant(self.vector, ir.Undefined), lanes)

    def prefetch(self, pointer: _Value, once: bool = False) -> None:
        """Ask for a cache line that is read soon; beyond an array it does nothing.

        once : whether it is read only once, and should push little else out of the caches
        """
        pointer = self.builder.bitcast(pointer, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, INT32, INT32, INT32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        self.builder.call(function, [pointer, INT32(0), INT32(0 if once else 3), INT32(1)])

    def loop(self, start: _Value, end: _Value, step: int = 1) -> Any:
        return cgutils.for_range_slice(self.builder, start, end, INT64(step), intp=INT64)

    def in_groups(self, start: _Value, end: _Value, sizes: tuple[int, ...]) -> Iterator[tuple[_Value, int]]:
        """A loop for each size, powers of two down to 1: first slot and size of the groups from start to end."""
        for size in sizes:
            rest = self.builder.and_(self.builder.sub(end, start), INT64(size - 1))
            whole = self.builder.sub(end, rest)
            with self.loop(start, whole, size) as (slot, _):
                yield slot, size
            start = whole

    def weighted_sum(
        self,
        tile: list[_Value],
        chains: int,
        values: _Value,
        indices: _Value,
        start: _Value,
        end: _Value,
        x: _Value,
        stride: _Value,
        picks: list[_Value],
    ) -> list[_Value]:
        """The tile plus values[s] * x[indices[s] * stride :], for the slots s from start to end."""
        vectors = len(tile)
        sums = [cgutils.alloca_once(self.builder, self.vector) for _ in range(vectors * chains)]
        for k, place in enumerate(sums):
            self.builder.store(tile[k] if k < vectors else self.zero, place)
        for slot, group in self.in_groups(start, end, (8, 4, 1)):
            weights = self.group(values, slot, group)
            for k, row in enumerate(self.rows(x, indices, slot, group, stride, together=vectors > 1)):
                weight, chain = self.splat(weights, k, picks), k % chains
                for t in range(vectors):
                    self.add_product(sums[chain * vectors + t], weight, self.load(row, t))
        return [self.total(sums[t::vectors]) for t in range(vectors)]

    def row(self, x: _Value, indices: _Value, slot: _Value, stride: _Value) -> _Value:
        """Pointer to x[indices[slot] * stride]; indices are never negative."""
        index = self.builder.zext(self.builder.load(self.builder.gep(indices, [slot])), INT64)
        return self.builder.gep(x, [self.builder.mul(index, stride)])

    def rows(
        self, x: _Value, indices: _Value, slot: _Value, n: int, stride: _Value, together: bool
    ) -> Iterator[_Value]:
        """:meth:`row` of n slots, a power of two; their indices come with one load of up to 8 bytes if `together`.

        Loads are what bounds the loops of several vectors, beside them shifts are free. All processors with
        vectors here are little-endian: the first index is in the lowest bits.
        """
        bits = indices.type.pointee.width
        at_once = min(n, 64 // bits) if together else 1
        kind, one = ir.IntType(at_once * bits), 2**bits - 1
        for first in range(0, n, at_once):
            place = self.builder.add(slot, INT64(first))
            if at_once == 1:
                yield self.row(x, indices, place, stride)
                continue
            pointer = self.builder.bitcast(self.builder.gep(indices, [place]), kind.as_pointer())
            word = self.barrier(self.builder.load(pointer, align=bits // 8), "r")
            for k in range(at_once):
                index = self.builder.and_(self.builder.lshr(word, kind(k * bits)), kind(one))
                index = self.builder.zext(index, INT64) if kind.width < 64 else index
                yield self.builder.gep(x, [self.builder.mul(index, stride)])

    def gather(self, pointers: Iterable[_Value]) -> _Value:
        """A vector put together from scalar loads, which is faster than the gather instruction."""
        vector = ir.Constant(self.vector, ir.Undefined)
        for lane, pointer in enumerate(pointers):
            vector = self.builder.insert_element(vector, self.builder.load(pointer), INT32(lane))
        return vector

    def barrier(self, value: _Value, register: str) -> _Value:
        """The value, by an empty instruction that keeps LLVM from loading parts of it once more."""
        kind = ir.FunctionType(value.type, [value.type])
        return self.builder.asm(kind, "", f"={register},0", [value], False)

    def load(self, pointer: _Value, t: int) -> _Value:
        """The t-th vector from `pointer`, which need not be aligned."""
        return self.builder.load(self._vector_pointer(pointer, t), align=self.size)

    def store(self, value: _Value, pointer: _Value, t: int) -> None:
        self.builder.store(value, self._vector_pointer(pointer, t), align=self.size)

    def copy(self, source: _Value, target: _Value, size: int) -> None:
        """target[:size] = source[:size]."""
        kind = ir.VectorType(self.element, size).as_pointer()
        values = self.builder.load(self.builder.bitcast(source, kind), align=self.size)
        self.builder.store(values, self.builder.bitcast(target, kind), align=self.size)

    def store_past_caches(self, value: _Value, pointer: _Value) -> None:
        """Store a vector at the start of a cache line."""
        place = self.builder.bitcast(pointer, self.vector.as_pointer())
        store = self.builder.store(value, place, align=VECTOR_BYTES)
        store.set_metadata("nontemporal", self.builder.module.add_metadata([INT32(1)]))

    def _vector_pointer(self, pointer: _Value, t: int) -> _Value:
        place = self.builder.gep(pointer, [INT64(t * self.lanes)])
        return self.builder.bitcast(place, self.vector.as_pointer())

    def group(self, values: _Value, slot: _Value, size: int) -> _Value:
        """The vector values[slot : slot + size]."""
        kind = ir.VectorType(self.element, size)
        pointer = self.builder.bitcast(self.builder.gep(values, [slot]), kind.as_pointer())
        weights = self.builder.load(pointer, align=self.size)
        return self.barrier(weights, "v") if VECTOR_BYTES == 64 and size > 1 else weights

    def picks(self, n: int) -> list[_Value]:
        """What :meth:`splat` spreads n elements with, in registers; made before a loop. Empty where it needs none.

        LLVM takes two instructions for most elements, if it knows which one it is to spread.
        """
        if VECTOR_BYTES < 64 or self.lanes * self.size < VECTOR_BYTES:
            return []
        kind = ir.VectorType(ir.IntType(8 * self.size), self.lanes)
        return [self.barrier(ir.Constant(kind, [k] * self.lanes), "v") for k in range(n)]

    def splat(self, group: _Value, k: int, picks: list[_Value]) -> _Value:
        """Element k of a group in every lane."""
        undefined = ir.Constant(group.type, ir.Undefined)
        if not picks or group.type.count == 1:
            lanes = ir.Constant(ir.VectorType(INT32, self.lanes), [k] * self.lanes)
            return self.builder.shuffle_vector(group, undefined, lanes)
        kind = ir.FunctionType(self.vector, [self.vector, group.type, INT64])
        element = "f32" if self.size == 4 else "f64"
        name = f"llvm.vector.insert.v{self.lanes}{element}.v{group.type.count}{element}"
        widen = cgutils.get_or_insert_function(self.builder.module, kind, name)
        wide = self.builder.call(widen, [ir.Constant(self.vector, ir.Undefined), group, INT64(0)])
        kind = ir.FunctionType(self.vector, [self.vector, picks[k].type])
        name = f"llvm.x86.avx512.permvar.{'sf' if self.size == 4 else 'df'}.512"
        permute = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(permute, [wide, picks[k]])

    def add(self, a: _Value, b: _Value) -> _Value:
        """a + b."""
        return self.builder.fadd(a, b, flags=_FAST)

    def add_product(self, place: _Value, a: _Value, b: _Value) -> None:
        """place += a * b, contracted to one fused multiply-add where the processor has it."""
        product = self.builder.fmul(a, b, flags=_FAST)
        self.builder.store(self.add(self.builder.load(place), product), place)

    def total(self, places: list[_Value]) -> _Value:
        """The sum of what the places hold."""
        result = self.builder.load(places[0])
        for place in places[1:]:
            result = self.add(result, self.builder.load(place))
        return result

    def product(self, held: list[_Value], row: _Value) -> _Value:
        """A vector whose lanes add up to the scalar product of the held vectors with the row."""
        sums = [self.zero] * min(2, len(held))
        for t, vector in enumerate(held):
            product = self.builder.fmul(vector, self.load(row, t), flags=_FAST)
            sums[t % 2] = self.add(sums[t % 2], product)
        return sums[0] if len(sums) == 1 else self.add(*sums)

    @property
    def at_once(self) -> int:
        """Vectors that :meth:`add_sums` adds up faster than one by one: as many as elements in 16 bytes."""
        return 16 // self.size if self.lanes * self.size >= 16 else 1

    def add_sums(self, vectors: list[_Value], out: _Value) -> None:
        """Add the sum of the lanes of each vector to out[0], out[1], ...

        One vector alone takes an addition and a shuffle for each halving. Several are mixed first, within every
        16 bytes, and then halved together.
        """
        if len(vectors) == 1:
            self.builder.store(self.add(self.builder.load(out), self.across(vectors[0])), out)
            return
        width = 1
        while len(vectors) > 1:
            vectors = [self._mix(a, b, width) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
            width *= 2
        sums = vectors[0]
        while (n := sums.type.count // 2) >= width:
            low, high = (ir.Constant(ir.VectorType(INT32, n), list(range(k, k + n))) for k in (0, n))
            halves = [self.builder.shuffle_vector(sums, sums, half) for half in (low, high)]
            sums = self.add(*halves)
        place = self.builder.bitcast(out, sums.type.as_pointer())
        before = self.builder.load(place, align=self.size)
        self.builder.store(self.add(before, sums), place, align=self.size)

    def _mix(self, a: _Value, b: _Value, width: int) -> _Value:
        """Sums of a and of b, `width` elements of each in turn, within every 16 bytes."""
        per = 16 // self.size
        halves = []
        for first in (0, per // 2):
            order = [
                q + first + i + source * self.lanes
                for q in range(0, self.lanes, per)
                for start in range(0, per // 2, width)
                for source in (0, 1)
                for i in range(start, start + width)
            ]
            mask = ir.Constant(ir.VectorType(INT32, self.lanes), order)
            halves.append(self.builder.shuffle_vector(a, b, mask))
        return self.add(*halves)

    def across(self, vector: _Value) -> _Value:
        """The sum of the lanes of a vector."""
        kind = ir.FunctionType(self.element, [self.element, self.vector])
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f{8 * self.size}"
        reduce = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(reduce, [ir.Constant(self.element, 0.0), vector], fastmath=_FAST)
