"""Launches of the GPU kernels: which instance, how many blocks, how much shared memory, which arguments.

Plain CuPy arrays in and out. As all kernels they check nothing; :mod:`sparsekit.gpu_matrix` does. What they do,
and why, is in `condensed.cu`. They are compiled at first use, all of one kind of x together; CuPy keeps them on
disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sparsekit.kernels.gpu_arrays import Limits, device_limits, require_cupy
from sparsekit.kernels.gpu_instances import (
    BYTES,
    ENTRIES,
    FEW_SAMPLES,
    FEW_THREADS,
    INDEX_TYPES,
    INSTANCES,
    KINDS,
    OPTIONS,
    PACK_THREADS,
    ROW_BYTES,
    ROWS,
    SEGMENTS,
    SHAPES,
    SOURCE,
    Shape,
)
from sparsekit.kernels.gpu_layout import PackedRows

_FREE_SHARED = 48 * 1024  # bytes of shared memory that a kernel may have without being asked for


@dataclass(frozen=True)
class DeviceRows:
    """:class:`PackedRows` on the device: its arrays as CuPy arrays, its sizes as int32."""

    inputs: Any
    positions: Any
    steps: Any
    outputs: Any
    n_inputs: np.int32
    n_slices: np.int32
    n_chunks: np.int32
    chunk_rows: np.int32
    most_steps: int

    @classmethod
    def of(cls, rows: PackedRows) -> DeviceRows:
        """Copy to the device."""
        copied = require_cupy().asarray
        return cls(
            inputs=copied(rows.inputs),
            positions=copied(rows.positions),
            steps=copied(rows.steps),
            outputs=copied(rows.outputs),
            n_inputs=np.int32(rows.n_inputs),
            n_slices=np.int32(rows.n_slices),
            n_chunks=np.int32(rows.n_chunks),
            chunk_rows=np.int32(rows.chunk_rows),
            most_steps=rows.most_steps,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in (self.inputs, self.positions, self.steps, self.outputs))

    def tile_bytes(self, buffers: int) -> int:
        """Shared memory of so many staged chunks, each with its row of zeros."""
        return buffers * (int(self.chunk_rows) + 1) * ROW_BYTES


@dataclass(frozen=True)
class Image:
    """What a convolution reads of an image (channels, height, width, batch).

    Attributes
    ----------
    taps : int32 (n_in, 4), for each column of the weight: its pixel, counted from the one under the kernel's
        corner in C order of (channel, height, width), kernel row, kernel column, 0
    corners : int32 (positions, 2), pixel (top, left) on which the kernel's corner lies; negative in the padding
    height, width : of the image
    """

    taps: Any
    corners: Any
    height: int
    width: int


def pack(values: Any, rows: DeviceRows, out: Any) -> None:
    """out (n_steps, 16, 4) = the stored values in the order of `rows`, zeros where it has no weight."""
    count = rows.positions.size // ENTRIES
    if count:
        blocks = -(-count // PACK_THREADS)
        _launch("pack", blocks, PACK_THREADS, (values, rows.positions, out, np.int32(count)))


def gather(
    x: Any, weights: Any, rows: DeviceRows, bias: Any, y: Any, relu: bool, *, samples_first: bool = False
) -> None:
    """y = W x, or max(W x + bias, 0), tile by tile.

    Parameters
    ----------
    x : (n_in, batch), or (batch, n_in) with `samples_first`
    weights : float32 (n_steps, 16, 4), made by :func:`pack`
    bias : float32 (n_out,) or None
    y : float32 (n_out, batch), or (batch, n_out) with `samples_first`
    """
    kind = KINDS[x.dtype.name]
    batch, n_out = (len(x), y.shape[1]) if samples_first else (x.shape[1], y.shape[0])
    if batch:
        kernel, more = ("gather_samples", (np.int32(n_out),)) if samples_first else ("gather_features", ())
        _launch_gather(kernel, kind, x, weights, rows, bias, y, relu, batch, 1, more)


def gather_images(x: Any, weights: Any, rows: DeviceRows, bias: Any, y: Any, relu: bool, image: Image) -> None:
    """y (n_out, out height, out width, batch) = the convolution of x (channels, height, width, batch)."""
    positions, batch = len(image.corners), x.shape[3]
    if batch:
        sizes = map(np.int32, (image.height, image.width, positions))
        more = (image.taps, image.corners, *sizes)
        kind = KINDS[x.dtype.name]
        _launch_gather("gather_images", kind, x, weights, rows, bias, y, relu, batch, positions, more)


def gather_few(
    x: Any,
    values: Any,
    positions: Any,
    inputs: Any,
    starts: Any,
    bias: Any,
    y: Any,
    relu: bool,
    *,
    samples_first: bool = False,
) -> None:
    """y = W x, or max(W x + bias, 0), row by row, for x and y as in :func:`gather`.

    Parameters
    ----------
    values : float32, the stored weights
    positions : int32 (nnz,), place in the flat values of each entry's weight; None: the entries are the values
    inputs : uint16 or int32 (nnz,), input of each entry
    starts : int32 (n_rows + 1,), row r owns the entries starts[r] to starts[r + 1]
    """
    batch = x.shape[0 if samples_first else 1]
    if not batch:
        return
    n_rows, samples = starts.size - 1, next((s for s in FEW_SAMPLES if s >= batch), FEW_SAMPLES[-1])
    name = f"gather_few<{KINDS[x.dtype.name]}, {INDEX_TYPES[inputs.dtype.name]}, {samples}>"
    row_blocks = -(-n_rows // (FEW_THREADS // 32))
    strides = (1, x.shape[1], 1, y.shape[1]) if samples_first else (batch, 1, batch, 1)
    sizes = map(np.int32, (n_rows, batch, row_blocks, relu, *strides))
    blocks = row_blocks * -(-batch // samples)
    _launch(name, blocks, FEW_THREADS, (x, values, positions, inputs, starts, bias, y, *sizes))


def outer(g: Any, x: Any, rows: DeviceRows, out: Any) -> None:
    """out = g x^T at the stored places, in the order of the stored values.

    Parameters
    ----------
    g : (n_out, batch), of the dtype of x
    x : (n_in, batch)
    out : float32, shaped like the stored values
    """
    kind, batch = KINDS[x.dtype.name], x.shape[1]
    if not batch:
        out[...] = 0
        return
    buffers = min(2, -(-batch // _tile_samples(kind)))
    shape = _outer_shape(rows, buffers, device_limits(require_cupy()))
    shared = _outer_bytes(rows, buffers, shape)
    blocks = _row_blocks(rows, shape) * int(rows.n_chunks)
    sizes = (np.int32(batch), *_sizes(rows), np.int32(shape.split), np.int32(rows.most_steps))
    arguments = (g, x, rows.inputs, rows.steps, rows.outputs, rows.positions, out, *sizes)
    _launch(f"outer<{kind}>", blocks, shape.threads, arguments, shared)


def _launch_gather(kernel, kind, x, weights, rows, bias, y, relu, batch, positions, more) -> None:
    tiles = -(-batch // _tile_samples(kind)) * positions
    shape = _gather_shape(rows, tiles, device_limits(require_cupy()))
    row_blocks = _row_blocks(rows, shape)
    sizes = (np.int32(batch), *_sizes(rows), np.int32(row_blocks), np.int32(shape.split), np.int32(relu))
    arguments = (x, weights, rows.inputs, rows.steps, rows.outputs, bias, y, *sizes, *more)
    shared = _gather_bytes(kernel, kind, rows, shape)
    _launch(f"{kernel}<{kind}>", row_blocks * tiles, shape.threads, arguments, shared)


def _gather_shape(rows: DeviceRows, tiles: int, limits: Limits) -> Shape:
    """The widest blocks of which there are enough for most processors; else the narrowest."""
    busy = (shape for shape in SHAPES if 4 * _row_blocks(rows, shape) * tiles >= 3 * limits.processors)
    return next(busy, SHAPES[-1])


def _outer_shape(rows: DeviceRows, buffers: int, limits: Limits) -> Shape:
    """The same, of those whose partial sums fit in shared memory; chunks are cut so that the narrowest do."""
    fits = [shape for shape in SHAPES if _outer_bytes(rows, buffers, shape) <= limits.shared_memory]
    enough = 3 * limits.processors
    busy = (shape for shape in fits if 4 * _row_blocks(rows, shape) * int(rows.n_chunks) >= enough)
    return next(busy, SHAPES[-1])


def _gather_bytes(kernel: str, kind: str, rows: DeviceRows, shape: Shape) -> int:
    """Shared memory: the staged chunks, and in their place afterwards partial sums and the output tile."""
    lane_sums = SEGMENTS // 2 * _segment_values(kind)
    parts = shape.slices * (shape.split - 1) * lane_sums * 32 * 4
    turned = _tile_samples(kind) * (shape.slices * ROWS + 1) * 4 if kernel == "gather_samples" else 0
    return max(rows.tile_bytes(min(2, int(rows.n_chunks))), parts, turned)


def _outer_bytes(rows: DeviceRows, buffers: int, shape: Shape) -> int:
    """Shared memory: the staged tiles, behind them the partial sums of the block's weights in a chunk."""
    return rows.tile_bytes(buffers) + shape.slices * rows.most_steps * ROWS * ENTRIES * 4


def _sizes(rows: DeviceRows) -> tuple[np.int32, ...]:
    return rows.n_inputs, rows.n_slices, rows.n_chunks, rows.chunk_rows


def _row_blocks(rows: DeviceRows, shape: Shape) -> int:
    return -(-int(rows.n_slices) // shape.slices)


def _segment_values(kind: str) -> int:
    """Values of x in 16 bytes."""
    return 16 // BYTES[kind]


def _tile_samples(kind: str) -> int:
    """Samples of a tile, one value each in a staged row."""
    return ROW_BYTES // BYTES[kind]


def _launch(name: str, blocks: int, threads: int, arguments: tuple, shared_memory: int = 0) -> None:
    kernel = _kernel(require_cupy(), name)
    if shared_memory > max(_FREE_SHARED, kernel.max_dynamic_shared_size_bytes):
        kernel.max_dynamic_shared_size_bytes = shared_memory
    kernel((blocks,), (threads,), arguments, shared_mem=shared_memory)


@cache
def _kernel(cupy: Any, name: str) -> Any:
    kind = next(instance.kind for instance in INSTANCES if instance.name == name)
    return _module(cupy, kind).get_function(name)


@cache
def _module(cupy: Any, kind: str) -> Any:
    names = [instance.name for instance in INSTANCES if instance.kind == kind]
    return cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=OPTIONS, name_expressions=names)
