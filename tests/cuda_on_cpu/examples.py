"""Launches of the kernels of examples.cu, as they are and with bugs planted in them.

As a script it launches the examples that are named, in every thread order of `ORDERS`, and fails if a value is
wrong; sanitized.py runs it:

    python tests/cuda_on_cpu/sanitized.py thread tests/cuda_on_cpu/examples.py total lost_atomic
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cuda_on_cpu.module import CpuKernel, CpuRawModule, thread_order

SOURCE = Path(__file__).with_name("examples.cu").read_text(encoding="utf-8")

# Forward and reverse, even and odd permutations: with even ones copies arrive late, with odd ones at once.
ORDERS = (0, 1, 6, 7)


def transpose(kernel: CpuKernel) -> bool:
    rows, columns, tile = 37, 29, 16
    matrix = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    out = np.full((columns, rows), np.nan, np.float32)
    kernel((-(-columns // tile),), (tile, 4), (matrix, out, np.int32(rows), np.int32(columns)))
    return np.array_equal(out, matrix.T)


def row_sums(kernel: CpuKernel) -> bool:
    rows, columns, warps = 7, 45, 2
    matrix = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    sums = np.full(rows, np.nan, np.float32)
    kernel((-(-rows // warps),), (32 * warps,), (matrix, sums, np.int32(rows), np.int32(columns)))
    return np.array_equal(sums, matrix.sum(axis=1))


def total(kernel: CpuKernel) -> bool:
    values, result = np.arange(50, dtype=np.float32), np.zeros(1, np.float32)
    kernel((2,), (32,), (values, result, np.int32(50)))
    return result[0] == values.sum()


def fold(kernel: CpuKernel, shared_mem: int = 2 * 32 * 4) -> bool:
    blocks, chunks, chunk = 2, 5, 32
    values = np.arange(blocks * chunks * chunk, dtype=np.float32).reshape(blocks, chunks, chunk)
    out = np.full((blocks, chunk), np.nan, np.float32)
    kernel((blocks,), (chunk,), (values, out, np.int32(chunks)), shared_mem=shared_mem)
    return np.array_equal(out, np.einsum("bct,c->bt", values[:, :, ::-1], np.arange(1, chunks + 1)))


def fold_without_room(kernel: CpuKernel) -> bool:
    return fold(kernel, shared_mem=2 * 32 * 4 - 16)


def turn_warps(kernel: CpuKernel) -> bool:
    values, out = np.arange(64, dtype=np.float32), np.full(64, np.nan, np.float32)
    kernel((1,), (64,), (values, out))
    return np.array_equal(out.reshape(2, 32), values.reshape(2, 32)[:, ::-1])


def turn_vectors(kernel: CpuKernel, offset: int = 0) -> bool:
    values = np.arange(512, dtype=np.float32)[offset : offset + 256]
    out = np.zeros(256, np.float32)
    kernel((1,), (64,), (values, out))
    return np.array_equal(out.reshape(64, 4), values.reshape(64, 4)[::-1])


def turn_misaligned_vectors(kernel: CpuKernel) -> bool:
    return turn_vectors(kernel, offset=1)


@dataclass(frozen=True)
class Example:
    """A kernel, a launch of it that says whether the values are right, and a bug: one text replaced by another."""

    kernel: str
    launch: Callable[[CpuKernel], bool]
    old: str = ""
    new: str = ""

    def source(self) -> str:
        if self.old and SOURCE.count(self.old) != 1:
            raise ValueError(f"{self.old!r} occurs {SOURCE.count(self.old)} times in examples.cu")
        return SOURCE.replace(self.old, self.new) if self.old else SOURCE


TRANSPOSE = "transpose<float, 16>", transpose
ROW_SUMS = "row_sums<2>", row_sums
FOLD = "fold<32>", fold

CORRECT = {
    "transpose": Example(*TRANSPOSE),
    "row_sums": Example(*ROW_SUMS),
    "total": Example("total", total),
    "fold": Example(*FOLD),
    "turn_vectors": Example("turn_vectors", turn_vectors),
    "turn_warps": Example("turn_warps", turn_warps),
}

SHUFFLE = "sum += __shfl_xor_sync(0xffffffffu, sum, bit);"

# Found by values, or by the engine: test_cuda_on_cpu.py says which.
BUGS = {
    "read_after_write": Example(*TRANSPOSE, "__syncthreads();  // before the tile is read", ""),
    "write_after_read": Example(*TRANSPOSE, "if (top) __syncthreads();", ""),
    "barrier_in_branch": Example(*TRANSPOSE, "if (top) __syncthreads();", "if (top && x < 9) __syncthreads();"),
    "barrier_after_exit": Example(
        *TRANSPOSE, "x = threadIdx.x;", "x = threadIdx.x; if (left + x >= columns) return;"
    ),
    "short_staging": Example(
        *TRANSPOSE, "if (top + y < rows && left", "if (y < TILE - 1 && top + y < rows && left"
    ),
    "wrong_stride": Example(*TRANSPOSE, "tile[x * (TILE + 1) + y]", "tile[x * TILE + y]"),
    "no_syncwarp": Example("turn_warps", turn_warps, "__syncwarp();\n  out[i]", "out[i]"),
    "weak_wait": Example(*FOLD, "SK_COPY_WAIT(1);", "SK_COPY_WAIT(2);"),
    "no_barrier_after_wait": Example(*FOLD, "__syncthreads();  // so it has for all threads", ""),
    "no_barrier_before_reuse": Example(*FOLD, "__syncthreads();  // before the copy after the next", "//"),
    "missing_lane": Example(*ROW_SUMS, SHUFFLE, f"if (lane < 31) {SHUFFLE}"),
    "lane_outside_mask": Example(*ROW_SUMS, SHUFFLE, SHUFFLE.replace("ffffffff", "0000ffff")),
    "reads_outside_mask": Example(*ROW_SUMS, SHUFFLE, "if (lane < 16) " + SHUFFLE.replace("ffffffff", "0000ffff")),
    "different_lines": Example(*ROW_SUMS, SHUFFLE, f"if (lane < 4) {SHUFFLE} else\n{SHUFFLE}"),
}

# The values may well be right: a sanitizer finds them.
RACES = {
    "lost_atomic": Example("total", total, "atomicAdd(sum, values[i])", "*sum += values[i]"),
    "race_between_blocks": Example(
        *ROW_SUMS,
        "if (lane == 0) sums[row] = sum;",
        "if (lane == 0) sums[row] = sum; if (!threadIdx.x) *sums += 0.f;",
    ),
    "shared_race": BUGS["write_after_read"],
    "copy_race": BUGS["no_barrier_before_reuse"],
}
BAD_ACCESSES = {
    "global_read": Example(*TRANSPOSE, "top + y < rows && left", "left"),
    "global_write": Example(*TRANSPOSE, "left + y < columns && top", "top"),
    "static_shared": Example(
        *TRANSPOSE, "SK_SHARED(T, tile, TILE * (TILE + 1))", "SK_SHARED(T, tile, TILE * TILE)"
    ),
    "dynamic_shared": Example("fold<32>", fold_without_room),
    "misaligned": Example("turn_vectors", turn_misaligned_vectors),
}
ALL = {**CORRECT, **BUGS, **RACES, **BAD_ACCESSES}


def build(names: Iterable[str]) -> dict[str, CpuKernel]:
    """The kernels of these examples, compiled in one go: each source is a namespace of its own."""
    names = sorted(names)
    parts = [f'namespace {name} {{\n#line 1 "kernel.cu"\n{ALL[name].source()}\n}}' for name in names]
    expressions = [f"{name}::{ALL[name].kernel}" for name in names]
    module = CpuRawModule(code="\n".join(parts), options=("-std=c++17",), name_expressions=expressions)
    return {name: module.get_function(e) for name, e in zip(names, expressions, strict=True)}


def main() -> int:
    kernels = build({**CORRECT, **RACES, **BAD_ACCESSES})  # always the same ones: compiled once
    wrong = 0
    for name in sys.argv[1:]:
        print(f"== {name}", file=sys.stderr, flush=True)
        for order in ORDERS:
            with thread_order(order):
                wrong += not ALL[name].launch(kernels[name])
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
