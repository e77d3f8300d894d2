"""A linear layer on a GPU, in inference: condensed against cuBLAS in FP32 and TF32 and against CSR.

Times are of CUDA events around a CUDA graph of several products, so that Python's part in a launch is not in
them; around as many launches where a library does what a graph cannot hold.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from sparsekit.bench import torch_competitors
from sparsekit.bench.arrays import normal, random_condensed
from sparsekit.bench.measure import TURNS, Case, Implementation, Problem, Timing, columns, transposes
from sparsekit.condensed import CondensedMatrix
from sparsekit.gpu_matrix import GpuCondensedMatrix
from sparsekit.kernels.gpu_arrays import require_cupy

PRODUCTS = 20  # in a graph, and so in a sample
# Of the largest result: inputs rounded to 11 significant bits give errors of 5e-4 of themselves.
_REDUCED = 4e-3


@dataclass(frozen=True)
class Sizes:
    """What to measure; shapes are (n_out, n_in)."""

    shapes: tuple[tuple[int, int], ...] = ((768, 3072), (3072, 768))
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.99)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


FULL = Sizes()
QUICK = Sizes(shapes=((768, 3072),), sparsities=(0.9,), batches=(1, 32, 256))


def device() -> str:
    """Name of the current device.

    Raises
    ------
    GpuUnavailableError
        If there is no CuPy, driver or device.
    """
    cupy = require_cupy()
    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()


def cases(*, quick: bool) -> Iterator[Case]:
    """The layer of the paper's timing figure and its transpose: every sparsity with every batch."""
    sizes = QUICK if quick else FULL
    for shape in sizes.shapes:
        for sparsity in sizes.sparsities:
            for batch in sizes.batches:
                work = f"{shape[1]} -> {shape[0]}"
                yield Case("gpu", work, sparsity, batch, partial(_problem, shape, sparsity, batch))


def measure(problem: Problem, repeats: int) -> list[Timing]:
    """Time every implementation, the implementations taking turns; seconds of one product."""
    samples: list[list[float]] = [[] for _ in problem.implementations]
    runs = [_several(implementation.run) for implementation in problem.implementations]
    for _ in range(TURNS):
        for run, seconds in zip(runs, samples, strict=True):
            run()
            seconds += [_seconds(run) / PRODUCTS for _ in range(-(-repeats // TURNS))]
    return [Timing.of(seconds) for seconds in samples]


def _seconds(run: Callable[[], Any]) -> float:
    cupy = require_cupy()
    started, ended = cupy.cuda.Event(), cupy.cuda.Event()
    started.record()
    run()
    ended.record()
    ended.synchronize()
    return 1e-3 * cupy.cuda.get_elapsed_time(started, ended)


def _several(run: Callable[[], Any]) -> Callable[[], Any]:
    """One function that does the work `PRODUCTS` times: a graph's launch, or as many launches."""
    graph = captured(run)
    return graph.launch if graph is not None else lambda: [run() for _ in range(PRODUCTS)]


def captured(run: Callable[[], Any]) -> Any:
    """A graph of `PRODUCTS` calls, or None where they do what a graph cannot hold."""
    cupy = require_cupy()
    cupy.cuda.get_current_stream().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        run()  # compiles, and fills the memory pool
        stream.synchronize()
        stream.begin_capture()
        try:
            for _ in range(PRODUCTS):
                run()
        except cupy.cuda.runtime.CUDARuntimeError:
            with suppress(cupy.cuda.runtime.CUDARuntimeError):  # it says once more that the capture is broken
                stream.end_capture()
            return None
        return stream.end_capture()


def _problem(shape: tuple[int, int], sparsity: float, batch: int, rng: np.random.Generator) -> Problem:
    cupy = require_cupy()
    matrix = random_condensed(shape, sparsity, rng)
    dense, x = matrix.to_dense(), normal((shape[1], batch), rng)
    on_device = matrix.to_gpu().frozen()
    implementations = [
        *_condensed(on_device, cupy.asarray(x)),
        *_cublas(cupy.asarray(dense), cupy.asarray(x)),
        *_cusparse(matrix, cupy.asarray(x)),
        *torch_competitors.csr_on_gpu(matrix.to_csr(), x),
    ]
    return Problem(
        [replace(each, convert=partial(_on_host, each.convert or columns)) for each in implementations],
        [dense.astype(np.float64) @ x.astype(np.float64)],
        stored_macs=matrix.nnz * batch,
        dense_macs=shape[0] * shape[1] * batch,
    )


def _on_host(convert: Callable[[Any], Sequence[Any]], result: Any) -> Sequence[Any]:
    """A result on the device as the reference has it."""
    return convert(result.get() if hasattr(result, "get") else result.cpu().numpy())


def _condensed(matrix: GpuCondensedMatrix, x: Any) -> Iterator[Implementation]:
    cupy = require_cupy()
    (n_out, n_in), batch = matrix.shape, x.shape[1]
    x_rows = cupy.ascontiguousarray(x.T)
    out, out_rows = cupy.empty((n_out, batch), np.float32), cupy.empty((batch, n_out), np.float32)
    yield Implementation("condensed", "ours", partial(matrix.matmul, x, out=out))
    rows = partial(matrix.matmul, x_rows, out=out_rows, samples_first=True)
    yield Implementation("condensed, samples first", "ours", rows, convert=transposes)
    half = partial(matrix.matmul, x.astype(np.float16), out=cupy.empty_like(out))
    yield Implementation("condensed, float16 inputs", "ours", half, tolerance=_REDUCED)
    turned, result = cupy.empty((n_in, batch), np.float32), cupy.empty((n_out, batch), np.float32)

    def with_transposes() -> Any:
        cupy.copyto(turned, x_rows.T)
        matrix.matmul(turned, out=result)
        cupy.copyto(out_rows, result.T)
        return out_rows

    yield Implementation("condensed, transposes included", "ours", with_transposes, convert=transposes)


def _cublas(weight: Any, x: Any) -> Iterator[Implementation]:
    cupy = require_cupy()
    x_rows = cupy.ascontiguousarray(x.T)
    out = cupy.empty((len(weight), x.shape[1]), np.float32)
    out_rows = cupy.empty((x.shape[1], len(weight)), np.float32)
    products = {
        "": (partial(cupy.matmul, weight, x, out=out), None),
        ", samples first": (partial(cupy.matmul, x_rows, weight.T, out=out_rows), transposes),
    }
    for suffix, (run, convert) in products.items():
        yield Implementation(f"cuBLAS FP32{suffix}", "dense", run, convert=convert)
    tf32 = _in_tf32()
    if tf32 is not None:
        for suffix, (run, convert) in products.items():
            name = f"cuBLAS TF32{suffix}"
            yield Implementation(name, "dense", partial(tf32, run), convert=convert, tolerance=_REDUCED)


def _in_tf32() -> Callable[[Callable[[], Any]], Any] | None:
    """Calls a function while CuPy multiplies float32 in TF32; None where the device or CuPy cannot."""
    cupy = require_cupy()
    if int(cupy.cuda.Device().compute_capability) < 80:
        return None
    try:
        linalg = importlib.import_module("cupy._core._routines_linalg")  # no public switch at run time
    except ModuleNotFoundError:
        return None

    def call(run: Callable[[], Any]) -> Any:
        before = linalg.get_compute_type(np.dtype(np.float32))
        linalg.set_compute_type(np.dtype(np.float32), linalg.COMPUTE_TYPE_TF32)
        try:
            return run()
        finally:
            linalg.set_compute_type(np.dtype(np.float32), before)

    return call


def _cusparse(matrix: CondensedMatrix, x: Any) -> Sequence[Implementation]:
    cupy = require_cupy()
    try:
        sparse = importlib.import_module("cupyx.scipy.sparse")
    except ModuleNotFoundError:
        return []
    csr = matrix.to_csr()
    arrays = cupy.asarray(csr.values), csr.indices.astype(np.int32), csr.indptr.astype(np.int32)
    theirs = sparse.csr_matrix(tuple(map(cupy.asarray, arrays)), shape=matrix.shape)
    operand = x[:, 0] if x.shape[1] == 1 else x
    fortran = cupy.asfortranarray(operand)  # cuSPARSE's own order, and at times the faster one
    return [
        Implementation("cuSPARSE CSR", "csr", partial(theirs.dot, operand)),
        Implementation("cuSPARSE CSR, samples first", "csr", partial(theirs.dot, fortran)),
    ]
