"""Products of one sample that look at their arguments themselves.

Small ones take no longer than Python needs for that. So the plan of weights that no longer change keeps a product
(`one_sample`) that is called at once: one of these, or of those that look inputs up
(:mod:`sparsekit.kernels.lookup`).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numba
import numpy as np

from sparsekit.kernels.compiled import FASTMATH, is_parallel
from sparsekit.kernels.memory import address
from sparsekit.kernels.plan import Plan
from sparsekit.kernels.processor import SIMD
from sparsekit.kernels.rectify import finish_row
from sparsekit.kernels.simd import sparse_dot
from sparsekit.kernels.threads import start_threads

_dot = sparse_dot()


def multiply(plan: Plan, values: np.ndarray, x, bias, relu, out) -> bool:
    """Whether out = W x could be computed: for frozen weights, and not so many that several threads pay.

    Nor for weights whose inputs are looked up: that product may refuse a sample, but is the one to keep.
    """
    if not (SIMD and plan.frozen) or plan.looks_up or is_parallel(values.size):
        return False
    if plan.one_sample is None:
        start_threads()  # before the first kernel is compiled
        begin = address(values)
        head = np.array([*plan.shape, begin, begin + values.nbytes])
        kernel = partial(
            _dots(values.dtype, plan.indices.dtype), head, values.reshape(-1), plan.indices, plan.indptr
        )
        done = kernel(x, bias, relu, out)
        refuse_others(kernel.func)
        plan.one_sample = kernel
        return done
    return plan.one_sample(x, bias, relu, out)


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
    if x.shape != (n_in, 1) or out.shape != (n_out, 1) or (bias.size != 0 and bias.size != n_out):
        return False
    if _overlaps(out, x.ctypes.data, x.ctypes.data + x.nbytes) or _overlaps(out, begin, end):
        return False
    return not _overlaps(out, bias.ctypes.data, bias.ctypes.data + bias.nbytes)


@cache
def _dots(dtype: np.dtype, index_dtype: np.dtype) -> Callable[..., bool]:
    """The dot product of every row; a function of its own for all dtypes, so that each is compiled for one."""

    @numba.njit(fastmath=FASTMATH)
    def dots(head, values, indices, indptr, x, bias, relu, out):
        if not suit(head, x, bias, out):
            return False
        x, out = x.reshape(-1), out.reshape(-1)
        for r in range(out.size):
            out[r] = _dot(values, indices, indptr[r], indptr[r + 1], x)
            finish_row(out, r, r + 1, bias, r, relu)
        return True

    return dots
