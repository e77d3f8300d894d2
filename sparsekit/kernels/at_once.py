"""Products that look at their arguments themselves.

Few samples, or small layers, take no longer than Python needs for that. So the plan of weights that no longer
change keeps products (`at_once`) that are called without further ado: these, and those that look the inputs of one
sample up (:mod:`sparsekit.kernels.lookup`).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numba
import numpy as np

from sparsekit.kernels.compiled import FASTMATH, is_parallel
from sparsekit.kernels.gather import COPY_READERS, direct_kernel, gather_strips, whole_vectors
from sparsekit.kernels.memory import LINE, address
from sparsekit.kernels.plan import Plan
from sparsekit.kernels.processor import SIMD, VECTOR_BYTES
from sparsekit.kernels.rectify import finish_row
from sparsekit.kernels.scratch import aligned_scratch, narrow, widen
from sparsekit.kernels.simd import sparse_dot
from sparsekit.kernels.threads import has_threads, launching, start_threads

_dot = sparse_dot()


def multiply(plan: Plan, values: np.ndarray, x, bias, relu, out, strip_parts: int) -> bool:
    """Whether out = W x could be computed: for frozen weights, and batches that are not empty.

    Nor for one sample if its inputs are looked up: that product may refuse a sample, but is the one to keep.

    strip_parts : the `n_parts` of strips, if they suit this batch, else 0
    """
    batch = x.shape[1]
    on_threads = is_parallel(values.size * batch)
    if not (SIMD and plan.frozen) or batch == 0 or (batch == 1 and (plan.looks_up or on_threads)):
        return False
    if batch in plan.at_once:
        return plan.at_once[batch](x, bias, relu, out)
    start_threads()  # before the first kernel is compiled
    begin = address(values)
    head = np.array([*plan.shape, begin, begin + values.nbytes])
    loops, arguments = _loops(x, plan.indices.dtype, on_threads, strip_parts)
    product = partial(loops, *arguments, head, values.reshape(-1), plan.indices, plan.indptr)
    product = partial(_on_threads, product) if on_threads else product
    done = product(x, bias, relu, out)
    refuse_others(loops)
    plan.at_once[batch] = product
    return done


def _loops(
    x: np.ndarray, index_dtype: np.dtype, on_threads: bool, strip_parts: int
) -> tuple[Any, tuple[int, ...]]:
    """The compiled product, and its first arguments."""
    if x.shape[1] == 1:
        return _dots(x.dtype, index_dtype), ()
    if strip_parts:
        make, kernel, first = _strips, gather_strips, strip_parts
    else:
        first = whole_vectors(x.shape[1], VECTOR_BYTES // x.itemsize)
        make, kernel = _direct, direct_kernel(first * x.itemsize)
    return make(x.dtype, index_dtype, kernel.parallel if on_threads else kernel.serial), (first,)


def _on_threads(product: Callable[..., bool], *arguments: Any) -> bool:
    """The product on several threads, where there are any."""
    if not has_threads():
        return False
    with launching():
        return product(*arguments)


def refuse_others(kernel: Any) -> Any:
    """The kernel, which has been compiled; arguments of other kinds raise a TypeError from now on."""
    kernel.disable_compile()
    return kernel


@numba.njit(inline="always")
def _overlaps(array, begin, end):
    """Whether it has bytes between two addresses."""
    return array.ctypes.data < end and begin < array.ctypes.data + array.nbytes


@numba.njit(inline="always")
def suit(head, x, bias, out):
    """Whether shapes are as they should, and out overlaps nothing that is read or stored.

    head : n_out, n_in, and the addresses where the stored values begin and end
    """
    n_out, n_in, begin, end = head[0], head[1], head[2], head[3]
    if x.shape[0] != n_in or out.shape != (n_out, x.shape[1]) or (bias.size != 0 and bias.size != n_out):
        return False
    if _overlaps(out, x.ctypes.data, x.ctypes.data + x.nbytes) or _overlaps(out, begin, end):
        return False
    return not _overlaps(out, bias.ctypes.data, bias.ctypes.data + bias.nbytes)


@cache
def _dots(dtype: np.dtype, index_dtype: np.dtype) -> Callable[..., bool]:
    """The dot product of every row; a function of its own for all dtypes, so that each is compiled for one."""

    @numba.njit(fastmath=FASTMATH)
    def dots(head, values, indices, indptr, x, bias, relu, out):
        if not (x.shape[1] == 1 and suit(head, x, bias, out)):
            return False
        x, out = x.reshape(-1), out.reshape(-1)
        for r in range(out.size):
            out[r] = _dot(values, indices, indptr[r], indptr[r + 1], x)
            finish_row(out, r, r + 1, bias, r, relu)
        return True

    return dots


@cache
def _direct(dtype: np.dtype, index_dtype: np.dtype, kernel: Callable[..., None]) -> Callable[..., bool]:
    """The kernel on a batch that is filled up to whole vectors; as :func:`_dots`, one for all dtypes."""

    @numba.njit(fastmath=FASTMATH)
    def direct(width, head, values, indices, indptr, x, bias, relu, out):
        if not suit(head, x, bias, out):
            return False
        (n_in, batch), n_out = x.shape, out.shape[0]
        if width == batch and (values.size < COPY_READERS * n_in or x.ctypes.data % LINE == 0):
            rows = x
        else:
            rows = aligned_scratch(n_in * width, x).reshape(n_in, width)
            widen(x, rows)
        if width == batch:
            kernel(values, indices, indptr, rows, bias, relu, out)
            return True
        sums = aligned_scratch(n_out * width, x).reshape(n_out, width)
        kernel(values, indices, indptr, rows, bias, relu, sums)
        narrow(sums, out)
        return True

    return direct


@cache
def _strips(dtype: np.dtype, index_dtype: np.dtype, kernel: Callable[..., None]) -> Callable[..., bool]:
    """The kernel on strips of the batch; as :func:`_dots`, one for all dtypes."""

    @numba.njit(fastmath=FASTMATH)
    def strips(n_parts, head, values, indices, indptr, x, bias, relu, out):
        if not suit(head, x, bias, out):
            return False
        kernel(values, indices, indptr, n_parts, x, bias, relu, out)
        return True

    return strips
