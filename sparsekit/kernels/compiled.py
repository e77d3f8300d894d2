"""How loops are compiled: once for one thread, once for several."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numba

from sparsekit.kernels.threads import has_threads, launching, start_threads

# Sums may be reordered and contracted to fused multiply-adds; NaN and Inf keep their meaning.
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}

_PARALLEL_FROM = 500_000  # multiply-adds, roughly 20 microseconds on one thread


class Kernel(NamedTuple):
    """The same loops compiled for one thread and for several; each is compiled when it is first called."""

    serial: Callable[..., Any]
    parallel: Callable[..., Any]


def compiled(loops: Callable[..., Any]) -> Kernel:
    """Decorator: compile a function whose `prange` iterations each own the memory they write."""
    return Kernel(numba.njit(fastmath=FASTMATH)(loops), numba.njit(parallel=True, fastmath=FASTMATH)(loops))


def run(kernel: Kernel, multiply_adds: int, *arguments: Any) -> Any:
    """Small work stays on one thread: starting and joining the others would take longer, on a busy machine by far.

    The choice looks at the work alone, not at the number of threads, so that results do not depend on it.
    """
    start_threads()  # before the first kernel is compiled, which may load the threading layer
    if is_parallel(multiply_adds):
        with launching():
            return kernel.parallel(*arguments)
    return kernel.serial(*arguments)


def is_parallel(multiply_adds: int) -> bool:
    """Whether :func:`run` takes the version for several threads."""
    return multiply_adds >= _PARALLEL_FROM and has_threads()
